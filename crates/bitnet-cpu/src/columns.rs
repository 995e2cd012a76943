//! Splits a row-major output by columns, so that threads can share the rows of a weight.

/// Output rows `[tokens, width]` split into runs of `columns` columns: for each run, its part of every token.
pub(crate) fn split_columns<T>(out: &mut [T], width: usize, columns: usize) -> Vec<Vec<&mut [T]>> {
    let tokens = out.len() / width;
    let mut runs: Vec<Vec<&mut [T]>> =
        (0..width.div_ceil(columns)).map(|_| Vec::with_capacity(tokens)).collect();
    for token in out.chunks_mut(width) {
        for (run, part) in runs.iter_mut().zip(token.chunks_mut(columns)) {
            run.push(part);
        }
    }
    runs
}

/// Columns per task: a multiple of `multiple`, enough work for a thread, and a few tasks per thread.
pub(crate) fn columns_per_task(width: usize, work_per_column: usize, multiple: usize) -> usize {
    /// Work (multiplications) below which a second thread costs more than it saves.
    const MIN_WORK: usize = 1 << 20;
    let for_work = MIN_WORK / work_per_column.max(1) + 1;
    let for_threads = width.div_ceil(4 * rayon::current_num_threads());
    for_work.max(for_threads).next_multiple_of(multiple)
}

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

/// Columns per task: a multiple of `multiple`, enough work for a thread, and as many tasks for each of them.
pub(crate) fn columns_per_task(width: usize, work_per_column: usize, multiple: usize) -> usize {
    /// Work (multiplications) below which a second thread costs more than it saves.
    const MIN_WORK: usize = 1 << 18;
    let threads = rayon::current_num_threads();
    let tasks = (width * work_per_column / MIN_WORK).clamp(1, 4 * threads);
    let tasks = if tasks < threads { tasks } else { tasks / threads * threads };
    width.div_ceil(tasks).next_multiple_of(multiple)
}

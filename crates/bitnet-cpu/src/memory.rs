//! Memory for weights that are read from end to end, once per token.

/// An empty vector with room for `capacity` values, in huge pages where the system gives them when it is asked to.
///
/// A weight beyond the caches is read about twice as fast from pages of 2 MiB: with those of 4 KiB the processor looks
/// one up per 64 lines, and prefetching ends with each.
pub fn vec_in_huge_pages<T>(capacity: usize) -> Vec<T> {
    let vec = Vec::with_capacity(capacity);
    #[cfg(target_os = "linux")]
    advise(&vec);
    vec
}

/// Zeros in huge pages, which the threads that write them first take from the system.
pub(crate) fn zeros_in_huge_pages(len: usize) -> Vec<i32> {
    let vec = vec![0; len];
    #[cfg(target_os = "linux")]
    advise(&vec);
    vec
}

/// Keeps memory that this process frees for its next allocations, instead of giving it back to the system, whose pages cost a
/// fault each when they are written again. For programs that train: every step allocates what the one before freed. Does
/// nothing where the allocator is not glibc's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "the allocator's settings have no safe form")]
    {
        // SAFETY: it changes when memory is given back, nothing else.
        let set = |setting, value| unsafe { libc::mallopt(setting, value) } == 1;
        // Older versions of glibc take 32 MiB at most. A trim threshold alone would be worse than nothing: the other then stays
        // at 128 KiB, from where on every block is given back.
        if set(libc::M_MMAP_THRESHOLD, 1 << 30) || set(libc::M_MMAP_THRESHOLD, 32 << 20) {
            set(libc::M_TRIM_THRESHOLD, -1); // never
        }
    }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the advice has no safe form")]
fn advise<T>(vec: &Vec<T>) {
    /// Smaller ones hold no huge page.
    const HUGE: usize = 1 << 21;
    const PAGE: usize = 1 << 12;
    let bytes = vec.capacity() * size_of::<T>();
    let start = vec.as_ptr().addr().next_multiple_of(PAGE);
    let skipped = start - vec.as_ptr().addr();
    if bytes >= HUGE + skipped {
        let len = (bytes - skipped) / PAGE * PAGE;
        // SAFETY: the range lies within the vector's own memory, and the advice changes no byte of it. A system that does
        // not take it, as one with larger pages, only reads more slowly.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_vector_of_any_size() {
        for capacity in [0, 1, 1 << 10, (1 << 21) + 3] {
            let mut vec = vec_in_huge_pages::<u32>(capacity);
            assert!(vec.is_empty() && vec.capacity() >= capacity);
            vec.resize(capacity, 7);
            assert!(vec.iter().all(|&value| value == 7));
        }
    }
}

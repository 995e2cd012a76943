//! The GGUF reader never allocates more than the file's size, whatever the file claims.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bitnet_format::gguf::{Gguf, Header};

struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // During a thread's end the counters may be gone; nothing is measured then.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        PEAK.with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps alloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps dealloc's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that `run` held at once.
fn peak<T>(run: impl FnOnce() -> T) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    drop(run());
    (PEAK.get() - before) as usize
}

/// The shortest entries there can be, which weigh the most in memory compared with the file.
fn dense_file() -> Vec<u8> {
    let mut bytes =
        [&b"GGUF"[..], &3u32.to_le_bytes(), &2000u64.to_le_bytes(), &2000u64.to_le_bytes()].concat();
    let name = |i: u16| [&2u64.to_le_bytes()[..], &[(i / 100) as u8, (i % 100) as u8]].concat();
    for i in 0..2000 {
        bytes.extend([&name(i)[..], &0u32.to_le_bytes(), &[1]].concat());
    }
    for i in 0..2000u16 {
        let offset = u64::from(i) * 32;
        bytes.extend(
            [&name(i)[..], &0u32.to_le_bytes(), &24u32.to_le_bytes(), &offset.to_le_bytes()].concat(),
        );
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes
}

#[test]
fn counters_count() {
    assert!((1000..2000).contains(&peak(|| vec![1u8; 1000])));
}

#[test]
fn reading_takes_less_than_the_file() {
    let mut bytes = dense_file();
    let header = bytes.len();
    let found = peak(|| assert!(Gguf::read(&bytes).is_err(), "the data are missing"));
    assert!(found < header, "{found} of {header}");
    bytes.resize(header + 2000 * 32, 0);
    let found = peak(|| assert_eq!(Gguf::read(&bytes).unwrap().tensors().count(), 2000));
    assert!(found < header, "{found} of {header}");
}

#[test]
fn claims_are_not_believed() {
    let mut header = Header::new();
    header.set("texts", &["a", "b"][..]).unwrap();
    header.set("numbers", &[1u64, 2][..]).unwrap();
    let good = header.write_to(Vec::new()).unwrap().finish().unwrap();
    for at in 0..good.len() - 8 {
        for huge in [u64::MAX, 1 << 40, 1 << 32, 100, 20] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
            let found = peak(|| Gguf::read(&bytes).is_ok());
            assert!(found <= bytes.len(), "{huge} at {at}: {found}");
        }
    }
}

//! Products of bf16 in the tiles of AMX.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::split::{PARTS, Tile};

/// Proves that the processor has AMX for bf16, and that the system lets this process use it.
#[derive(Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    pub(crate) fn get() -> Option<Self> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        USABLE.get_or_init(|| has_instructions() && is_permitted()).then_some(Self(()))
    }

    /// Sets up the tiles of this thread, for as long as the result lives.
    ///
    /// # Safety
    /// The thread must have no other `AmxTiles`: dropping one takes the tiles from both.
    pub(crate) unsafe fn tiles(self) -> AmxTiles {
        /// Eight tiles of sixteen rows, 64 bytes each.
        #[repr(C, align(64))]
        struct Shapes {
            palette: u8,
            _start: [u8; 15],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(64);
        rows[..8].fill(16);
        let shapes = Shapes { palette: 1, _start: [0; 15], row_bytes, rows };
        // SAFETY: `self` proves the instruction; the shapes are the first palette's largest.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly, preserves_flags))
        };
        AmxTiles(PhantomData)
    }
}

/// Proves that the tiles of this thread are set up.
pub(crate) struct AmxTiles(PhantomData<*const ()>);

impl AmxTiles {
    /// `sums += Σ left · right`, the sum over steps and over the parts of each: two tiles of rows times two tiles of columns.
    pub(crate) fn add_products(
        &self,
        left: &[[[Tile; 2]; PARTS]],
        right: &[[Tile; 2]],
        sums: &mut [[Tile; 2]; 2],
    ) {
        assert_eq!(left.len(), right.len(), "steps");
        if left.is_empty() {
            return;
        }
        // SAFETY: `self` proves the tiles' shapes, so that each load and store is of one `Tile`; both pointers advance over as
        // many steps as there are.
        unsafe {
            asm!(
                "tileloadd tmm0, [{sums} + {row}]",
                "tileloadd tmm1, [{sums} + {row} + 1024]",
                "tileloadd tmm2, [{sums} + {row} + 2048]",
                "tileloadd tmm3, [{sums} + {row} + 3072]",
                "2:",
                "tileloadd tmm4, [{right} + {row}]",
                "tileloadd tmm5, [{right} + {row} + 1024]",
                "tileloadd tmm6, [{left} + {row}]",
                "tileloadd tmm7, [{left} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm6, tmm4",
                "tdpbf16ps tmm1, tmm6, tmm5",
                "tdpbf16ps tmm2, tmm7, tmm4",
                "tdpbf16ps tmm3, tmm7, tmm5",
                "tileloadd tmm6, [{left} + {row} + 2048]",
                "tileloadd tmm7, [{left} + {row} + 3072]",
                "tdpbf16ps tmm0, tmm6, tmm4",
                "tdpbf16ps tmm1, tmm6, tmm5",
                "tdpbf16ps tmm2, tmm7, tmm4",
                "tdpbf16ps tmm3, tmm7, tmm5",
                "tileloadd tmm6, [{left} + {row} + 4096]",
                "tileloadd tmm7, [{left} + {row} + 5120]",
                "tdpbf16ps tmm0, tmm6, tmm4",
                "tdpbf16ps tmm1, tmm6, tmm5",
                "tdpbf16ps tmm2, tmm7, tmm4",
                "tdpbf16ps tmm3, tmm7, tmm5",
                "add {left}, 6144",
                "add {right}, 2048",
                "sub {steps}, 1",
                "jnz 2b",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 1024], tmm1",
                "tilestored [{sums} + {row} + 2048], tmm2",
                "tilestored [{sums} + {row} + 3072], tmm3",
                left = inout(reg) left.as_ptr() => _,
                right = inout(reg) right.as_ptr() => _,
                steps = inout(reg) left.len() => _,
                sums = in(reg) sums.as_mut_ptr(),
                row = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for AmxTiles {
    fn drop(&mut self) {
        // SAFETY: whoever set the tiles up has the instruction.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

fn has_instructions() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    // The leaf is there wherever AVX-512 is, which whoever asks has.
    let features = __cpuid_count(7, 0).edx;
    features & (BF16 | TILES) == BF16 | TILES
}

/// Linux gives a process the tiles' registers when it asks.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: it changes what this process may use, and by that how large a stack for signals must be at least.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

//! Plain Rust, compiled for each instruction set and chosen at run time.

/// Defines a function that takes a [`Kernel`](crate::Kernel) first and runs its body compiled for that kernel's
/// instructions. Rust never fuses or reorders float operations, so every kernel gives the same bits. What the body calls
/// must be `#[inline(always)]`, or else it runs without them.
macro_rules! vectorized {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(unsafe_code, clippy::too_many_arguments, reason = "vector instructions need it")]
        pub(crate) fn $name(kernel: $crate::Kernel, $($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn definition($($arg: $type),*) $(-> $out)? $body

            #[target_feature(enable = "avx512f,avx512bw")]
            fn avx512($($arg: $type),*) $(-> $out)? {
                definition($($arg),*)
            }

            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                definition($($arg),*)
            }

            match kernel.level() {
                $crate::kernel::Level::Scalar => definition($($arg),*),
                // SAFETY: holding a kernel proves its instructions.
                $crate::kernel::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                $crate::kernel::Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use vectorized;

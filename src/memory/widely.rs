//! Loops with the widest vectors of the processor (unsafe).

/// Runs `work` with wider vectors than the baseline of x86-64, if this processor has them.
///
/// Only code that the compiler inlines into `work` uses the wider vectors. So pass a closure around a plain loop.
pub(crate) fn widely<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has both.
        return unsafe { x86::with_avx512(work) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { x86::with_avx2(work) };
    }
    work()
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    /// # Safety
    /// The processor must have AVX-512F and AVX-512BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn with_avx512<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    /// # Safety
    /// The processor must have AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn with_avx2<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
}

//! A hint that a cache line will be needed soon. The one place here with `unsafe`, and it reads nothing.
#![allow(unsafe_code)]

/// Asks for the cache line of `place` without waiting for it; does nothing where there is no such instruction.
#[inline(always)]
pub(crate) fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // Safety: PREFETCHT0 is a hint: it changes no register and no memory and never faults, whatever the address
        // (Intel SDM volume 2, PREFETCHh). The address is that of a live reference all the same.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

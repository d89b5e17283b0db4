//! Memory from the operating system, on huge pages where they help.

use memmap2::MmapMut;

const HUGE_PAGE: usize = 2 << 20;

/// Maps `used` bytes of zeroes, and says where in the mapping they start: on a huge page, where they fill one.
pub(crate) fn map(used: usize) -> Option<(MmapMut, usize)> {
    if used < HUGE_PAGE {
        return Some((MmapMut::map_anon(used).ok()?, 0));
    }
    // What is before and behind the used bytes is never touched, so it takes up addresses but no memory.
    let chunk = MmapMut::map_anon(used.checked_add(HUGE_PAGE)?).ok()?;
    let address = chunk.as_ptr() as usize;
    let start = address.next_multiple_of(HUGE_PAGE) - address;
    advise_huge_pages(&chunk, start, used);
    Some((chunk, start))
}

/// Fewer TLB misses for the writer, which writes to many frames in turn. Advice only: failing costs speed, not correctness.
#[cfg(all(target_os = "linux", not(miri)))]
fn advise_huge_pages(chunk: &MmapMut, start: usize, used: usize) {
    let _ = chunk.advise_range(memmap2::Advice::HugePage, start, used);
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise_huge_pages(_: &MmapMut, _: usize, _: usize) {}

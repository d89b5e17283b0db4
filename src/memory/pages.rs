//! Obtains memory from the operating system, on huge pages if they help.

use memmap2::MmapMut;

const HUGE_PAGE: usize = 2 << 20;

/// Maps `used` bytes of zeroes. Returns the mapping, and the place in it where the bytes start. They start on a huge page if they
/// fill one. `None` if the operating system refuses.
pub(crate) fn map(used: usize) -> Option<(MmapMut, usize)> {
    if used < HUGE_PAGE {
        return Some((MmapMut::map_anon(used).ok()?, 0));
    }
    // Nothing touches the bytes before and after the used ones, so they take up addresses but no memory.
    let chunk = MmapMut::map_anon(used.checked_add(HUGE_PAGE)?).ok()?;
    let address = chunk.as_ptr() as usize;
    let start = address.next_multiple_of(HUGE_PAGE) - address;
    advise_huge_pages(&chunk, start, used);
    Some((chunk, start))
}

/// Asks for huge pages. The writer writes to many frames in turn, and has fewer TLB misses with them. A failure costs only speed.
#[cfg(all(target_os = "linux", not(miri)))]
fn advise_huge_pages(chunk: &MmapMut, start: usize, used: usize) {
    let _ = chunk.advise_range(memmap2::Advice::HugePage, start, used);
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise_huge_pages(_: &MmapMut, _: usize, _: usize) {}

//! Source locations in four bytes, so that every memory cell can remember who touched it last.

use std::panic::Location;

/// A source location as the distance of its `Location` from one of this crate's, or 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Site(i32);

#[track_caller]
#[inline(never)]
fn anchor() -> &'static Location<'static> {
    Location::caller()
}

thread_local! {
    static ANCHOR: usize = std::ptr::from_ref(anchor()).addr();
}

/// Converts between locations and sites; holds the anchor so that the conversion is a subtraction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sites {
    anchor: usize,
}

impl Sites {
    pub fn new() -> Self {
        Self { anchor: ANCHOR.with(|anchor| *anchor) }
    }

    #[inline(always)]
    pub fn encode(self, location: &'static Location<'static>) -> Site {
        let distance = std::ptr::from_ref(location).expose_provenance().wrapping_sub(self.anchor) as isize;
        // One binary's constants lie within 2 GiB of each other; a location from elsewhere is merely not named.
        Site(i32::try_from(distance).unwrap_or(0))
    }

    pub fn decode(self, site: Site) -> Option<&'static Location<'static>> {
        if site.0 == 0 {
            return None;
        }
        let address = self.anchor.wrapping_add_signed(site.0 as isize);
        // SAFETY: sites other than 0 are made by `encode` alone, from a `&'static Location` whose provenance it exposed.
        Some(unsafe { &*std::ptr::with_exposed_provenance::<Location<'static>>(address) })
    }
}

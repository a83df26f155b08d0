//! The Table API (facts §1): reading, writing, and the shapes of both.

pub(crate) mod input;
pub(crate) mod paging;
pub(crate) mod params;
pub(crate) mod read;
pub(crate) mod render;
pub(crate) mod write;

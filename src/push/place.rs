//! Where a file is, so that a copy of it can be told.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use servicenow::push::intent::Place;

use crate::catalog::host;

/// Where a file is.
pub fn place(file: &File) -> io::Result<Place> {
    let about = file.metadata()?;
    Ok(Place { device: about.dev(), inode: about.ino(), host: host() })
}

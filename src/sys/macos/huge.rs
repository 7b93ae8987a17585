//! Code on huge pages: none here.

pub(in crate::sys) fn move_image() -> bool {
    false
}

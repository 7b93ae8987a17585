//! What crosses between the processes, as bytes. All integers are little-endian; every field has a fixed place, every
//! tag a named constant. Bytes of a worker are input: bounded before allocation, checked for order.

pub(crate) mod beside;
mod bounds;
pub(crate) mod control;
pub(crate) mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod job;
pub(crate) mod payload;
pub(crate) mod rope;

/// Reads fixed-size integers from the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("the messages have fixed sizes");
        self.0 = rest;
        *head
    }
}

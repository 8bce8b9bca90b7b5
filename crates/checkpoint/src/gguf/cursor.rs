//! Reading forward through bytes that may end anywhere.

use crate::error::Fault;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn total(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// Everything not taken yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.position..]
    }

    /// The next `count` bytes; `field` is what they are, for the message.
    pub(super) fn take(&mut self, field: &str, count: usize) -> Result<&'a [u8], Fault> {
        if count > self.left() {
            let problem = format!("needs {count} bytes at offset {}, the file has {} left", self.position, self.left());
            return Err(Fault::corrupt(field, problem));
        }
        let taken = &self.bytes[self.position..][..count];
        self.position += count;
        Ok(taken)
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32, Fault> {
        let bytes = self.take(field, 4)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("took four bytes")))
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64, Fault> {
        let bytes = self.take(field, 8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("took eight bytes")))
    }

    /// A string: its length as u64, then that many bytes of UTF-8.
    pub(super) fn text(&mut self, field: &str) -> Result<&'a str, Fault> {
        let bytes = self.text_bytes(field)?;
        std::str::from_utf8(bytes).map_err(|error| Fault::corrupt(field, error.to_string()))
    }

    /// A string's bytes, unchecked.
    pub(super) fn text_bytes(&mut self, field: &str) -> Result<&'a [u8], Fault> {
        let length = self.u64(field)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.take(field, length)
    }
}

//! Matrices that are the first columns of wider ones, of which the other columns are nobody's to write.

use tilewright_host::gpu::Driver;

use crate::harness::{Arena, Failure, Handle};

/// What the other columns hold.
const MARK: u8 = 0xa5;

/// The widths, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Wider {
    /// Of the matrix.
    pub row_bytes: usize,
    /// Of what a row goes on with.
    pub more_bytes: usize,
}

impl Wider {
    /// Rows with what follows each.
    pub fn spread(self, rows: &[u8]) -> Vec<u8> {
        let marks = vec![MARK; self.more_bytes];
        rows.chunks(self.row_bytes).flat_map(|row| [row, &marks[..]].concat()).collect()
    }

    /// Room for rows that a kernel writes: without them, numbers that aren't any.
    pub fn alloc<D: Driver>(
        self,
        arena: &mut Arena<'_, D>,
        name: &'static str,
        rows: Option<&[u8]>,
        count: usize,
    ) -> Result<Handle, Failure> {
        let nothing = vec![0xff; count * self.row_bytes];
        let bytes = self.spread(rows.unwrap_or(&nothing));
        let handle = arena.alloc(name, bytes.len())?;
        if rows.is_some() || self.more_bytes > 0 {
            arena.write(handle, 0, &bytes)?;
        }
        Ok(handle)
    }

    /// The rows, if what follows them is as it was.
    pub fn rows(self, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut rows = Vec::new();
        for (index, row) in bytes.chunks(self.row_bytes + self.more_bytes).enumerate() {
            let (row, more) = row.split_at(self.row_bytes);
            if let Some(at) = more.iter().position(|&byte| byte != MARK) {
                return Err(format!("row {index} goes on: byte {at} past its columns was written"));
            }
            rows.extend_from_slice(row);
        }
        Ok(rows)
    }
}

use rayon::prelude::*;

use super::{Linear, Reader};
use crate::Result;

/// The columns of each group, contiguous, where they aren't so already.
pub(super) struct Order(Option<Vec<u32>>);

impl Reader<'_> {
    /// Reads the group of each column: indices in range, as many columns in each group as the configuration says.
    pub(super) fn order(&mut self, linear: Linear<'_>, tensor: &str) -> Result<Order> {
        let Linear { name, cols, .. } = linear;
        let Some(tensor) = self.take_if_there(name, tensor) else { return Ok(Order(None)) };
        let (groups, group) = (self.groups(linear), self.config.group(cols));
        let words = self.checkpoint.words(&tensor, &[cols])?;
        let index: Vec<u32> = words.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let mut counts = vec![0; groups];
        for (col, &of) in index.iter().enumerate() {
            match counts.get_mut(of as usize) {
                Some(count) => *count += 1,
                None => {
                    let found = format!("{} of column {col}", of as i32);
                    return Err(self.wrong(&tensor, format!("groups from 0 to {}", groups - 1), found));
                }
            }
        }
        for (of, &count) in counts.iter().enumerate() {
            let expected = group.min(cols - of * group);
            if count != expected {
                let expected = format!("{expected} columns in group {of}");
                return Err(self.wrong(&tensor, expected, count));
            }
        }
        if index.is_sorted() {
            return Ok(Order(None));
        }
        let mut order: Vec<u32> = (0..cols as u32).collect();
        order.sort_by_key(|&col| index[col as usize]);
        Ok(Order(Some(order)))
    }
}

impl Order {
    /// Brings rows of `cols` codes into the order.
    pub(super) fn apply(&self, codes: &mut [u8], cols: usize) {
        let Some(order) = &self.0 else { return };
        codes.par_chunks_exact_mut(cols).for_each_init(
            || vec![0; cols],
            |given, row| {
                given.copy_from_slice(row);
                row.iter_mut().zip(order).for_each(|(code, &col)| *code = given[col as usize]);
            },
        );
    }

    pub(super) fn into_permutation(self) -> Option<Vec<u32>> {
        self.0
    }
}

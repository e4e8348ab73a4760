use tilewright_kernels::abi::{ChangedRow, LogitChange};

use crate::{Error, Result};

/// What changes a step's logits before tokens are chosen from them: for some rows a list of tokens and how.
#[derive(Debug, Clone, Default)]
pub struct LogitChanges {
    rows: Vec<ChangedRow>,
    changes: Vec<LogitChange>,
}

impl LogitChanges {
    /// Whether no row has any.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Changes of a row behind all others that have any, of tokens in ascending order.
    pub fn push(&mut self, row: u32, changes: &[LogitChange]) {
        if changes.is_empty() {
            return;
        }
        // How many there are is checked when they are used.
        let (first, count) = (self.changes.len() as u32, changes.len() as u32);
        self.rows.push(ChangedRow { row, first, count, reserved: 0 });
        self.changes.extend_from_slice(changes);
    }

    /// The rows that have changes, and all rows' changes.
    pub(crate) fn parts(&self) -> (&[ChangedRow], &[LogitChange]) {
        (&self.rows, &self.changes)
    }

    /// The rows that have changes, each with its own.
    pub(crate) fn by_row(&self) -> impl Iterator<Item = (usize, &[LogitChange])> {
        let own = |row: &ChangedRow| &self.changes[row.first as usize..][..row.count as usize];
        self.rows.iter().map(move |row| (row.row as usize, own(row)))
    }

    /// That each logit is there, and none changed twice.
    pub(crate) fn check(&self, rows: usize, vocab: usize) -> Result<()> {
        let refuse = |what, expected: String, found: String| {
            Err(Error::Shape { op: "adjust_logits", what, expected, found })
        };
        if u32::try_from(self.changes.len()).is_err() {
            return refuse("changes", format!("at most {}", u32::MAX), self.changes.len().to_string());
        }
        let mut next_row = 0;
        for (row, changes) in self.by_row() {
            if !(next_row..rows).contains(&row) {
                return refuse("rows", format!("ascending ones below {rows}"), row.to_string());
            }
            next_row = row + 1;
            let mut next_token = 0;
            for change in changes {
                let token = change.token as usize;
                if !(next_token..vocab).contains(&token) {
                    return refuse("tokens", format!("ascending ones below {vocab}"), token.to_string());
                }
                next_token = token + 1;
            }
        }
        Ok(())
    }
}

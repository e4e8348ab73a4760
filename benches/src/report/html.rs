use super::Report;
use crate::error::Result;

/// The report as one page.
pub fn page(_: &Report) -> Result<String> {
    Ok(String::new())
}

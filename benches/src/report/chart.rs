use super::Report;
use crate::error::Result;

/// A chart of grouped bars for each family of cells, by name.
pub fn bars(_: &Report) -> Result<Vec<(String, String)>> {
    Ok(Vec::new())
}

/// Rates over operations a byte, under the ceilings.
pub fn roofline(_: &Report) -> Result<Option<String>> {
    Ok(None)
}

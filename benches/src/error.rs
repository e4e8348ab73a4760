use std::path::PathBuf;

/// What the runner can refuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No cell is called so.
    #[error("no cell '{name}'{hint}; 'sidebyside --list' names them all")]
    UnknownCell {
        /// As asked for.
        name: String,
        /// The nearest name there is, as the end of a sentence.
        hint: String,
    },
    /// No kernel has that stem.
    #[error("no kernel '{name}'; there are {known}")]
    UnknownKernel {
        /// As asked for.
        name: String,
        /// The stems there are.
        known: String,
    },
    /// A kernel's output isn't what the oracle says.
    #[error("{kernel} is wrong and was not timed, at {problem}: {what}")]
    Wrong {
        /// The kernel.
        kernel: &'static str,
        /// What it was run on.
        problem: String,
        /// The worst element.
        what: String,
    },
    /// The device refused something.
    #[error(transparent)]
    Device(#[from] tilewright_host::Error),
    /// The engine refused something.
    #[error(transparent)]
    Model(#[from] tilewright::Error),
    /// No shape is called so.
    #[error("no shape '{name}'; there are {known}")]
    UnknownShape {
        /// As asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Numbers of a run that make no sense.
    #[error("{0}")]
    Plan(&'static str),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of a peer's or a report's JSON isn't one.
    #[error("{origin}: expected {expected}: {source}")]
    Json {
        /// The file, or the program that wrote it.
        origin: String,
        /// What should have stood there.
        expected: &'static str,
        /// Why it doesn't.
        source: serde_json::Error,
    },
    /// The peers' scripts could not be run.
    #[error("the peers: {0}")]
    Peers(String),
    /// A chart could not be drawn.
    #[error("the chart: {0}")]
    Chart(String),
    /// The build has no CUDA.
    #[error("timing needs a GPU: build with '--features cuda'")]
    NoCuda,
}

/// A result of the runner.
pub type Result<T, E = Error> = std::result::Result<T, E>;

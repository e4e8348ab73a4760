use crate::{Error, Result};
use tilewright_host::{KvDType, MAX_DRAFTS};

/// How requests come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Batching {
    /// A request joins as soon as there's room and leaves when it's done.
    #[default]
    Continuous,
    /// Requests start together, and the next ones when the last of them is done: what continuous batching is compared with.
    Static,
}

/// Where drafts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// Nowhere: a step yields one token a sequence.
    #[default]
    Off,
    /// What followed the last time that the last few tokens were said (prompt lookup).
    NGram(DraftLength),
    /// A smaller model of the same vocabulary, given to [`super::Engine::with_draft`].
    DraftModel(DraftLength),
}

/// Drafts a sequence and step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftLength {
    /// So many.
    Fixed(usize),
    /// Up to so many, as time shows to pay; none where none do. Which tokens a request at a temperature above 0 draws depends on how
    /// many drafts were tried, and so on time; their distribution doesn't. Greedy answers depend on nothing.
    Adaptive(usize),
}

impl Speculation {
    /// Drafts of a sequence in a step, at most.
    pub fn max_drafts(self) -> usize {
        match self {
            Speculation::Off => 0,
            Speculation::NGram(length) | Speculation::DraftModel(length) => match length {
                DraftLength::Fixed(most) | DraftLength::Adaptive(most) => most,
            },
        }
    }

    /// Whether their number follows what pays.
    pub fn is_adaptive(self) -> bool {
        use DraftLength::Adaptive;
        matches!(self, Speculation::NGram(Adaptive(_)) | Speculation::DraftModel(Adaptive(_)))
    }
}

/// An engine's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Tokens that all sequences together can cache.
    pub cache_tokens: usize,
    /// Tokens a page.
    pub page_size: usize,
    /// Rows a step.
    pub step_tokens: usize,
    /// Tokens of one prompt a step, at most.
    pub chunk_tokens: usize,
    /// Sequences that run at a time.
    pub max_running: usize,
    /// How requests come together.
    pub batching: Batching,
    /// Whether pages of prompts that were computed serve prompts that begin alike.
    pub prefix_cache: bool,
    /// Where drafts come from.
    pub speculation: Speculation,
    /// What pages store keys and values as, a draft model's too.
    pub kv_dtype: KvDType,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            cache_tokens: 16 * 1024,
            page_size: 16,
            step_tokens: 512,
            chunk_tokens: 512,
            max_running: 32,
            batching: Batching::Continuous,
            prefix_cache: true,
            speculation: Speculation::Off,
            kv_dtype: KvDType::Native,
        }
    }
}

impl EngineConfig {
    /// # Errors
    /// Names the size that is out of range.
    pub fn validate(&self) -> Result<()> {
        let drafts = self.speculation.max_drafts();
        let most = MAX_DRAFTS as usize - 1;
        let speculates = self.speculation != Speculation::Off;
        if drafts > most || (speculates && drafts == 0) {
            return Err(Error::request("drafts", format!("1 to {most}"), drafts));
        }
        for (what, value) in [
            ("page_size", self.page_size),
            ("chunk_tokens", self.chunk_tokens),
            ("max_running", self.max_running),
        ] {
            if value == 0 {
                return Err(Error::request(what, "at least 1", 0));
            }
        }
        // Every running sequence has its rows in every step, so that the length of its drafts doesn't depend on its mates, and a
        // prompt has one.
        let rows = self.max_running.saturating_mul(1 + drafts).saturating_add(1);
        if self.step_tokens < rows {
            let expected = format!("at least {rows}, 1 and {} for each of {}", 1 + drafts, self.max_running);
            return Err(Error::request("step_tokens", expected, self.step_tokens));
        }
        if self.cache_tokens < self.page_size {
            return Err(Error::request("cache_tokens", "at least a page", self.cache_tokens));
        }
        if self.cache_tokens > u32::MAX as usize {
            return Err(Error::request("cache_tokens", "below 2^32", self.cache_tokens));
        }
        Ok(())
    }

    /// Pages of the cache.
    pub fn pages(&self) -> usize {
        self.cache_tokens / self.page_size
    }

    /// What the scheduler keeps to.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            pages: self.pages(),
            page_size: self.page_size,
            step_tokens: self.step_tokens,
            chunk_tokens: self.chunk_tokens,
            max_running: self.max_running,
            batching: self.batching,
            prefix_cache: self.prefix_cache,
            draft_model: matches!(self.speculation, Speculation::DraftModel(_)),
        }
    }
}

/// What the scheduler keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub pages: usize,
    pub page_size: usize,
    pub step_tokens: usize,
    pub chunk_tokens: usize,
    pub max_running: usize,
    pub batching: Batching,
    pub prefix_cache: bool,
    /// Whether pages hold keys and values of a draft model too.
    pub draft_model: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_range_are_named() {
        let good = EngineConfig::default();
        assert!(good.validate().is_ok());
        let drafts = |count| Speculation::NGram(DraftLength::Fixed(count));
        for (name, bad) in [
            ("page_size", EngineConfig { page_size: 0, ..good }),
            ("chunk_tokens", EngineConfig { chunk_tokens: 0, ..good }),
            ("max_running", EngineConfig { max_running: 0, ..good }),
            ("step_tokens", EngineConfig { step_tokens: 32, ..good }),
            ("step_tokens", EngineConfig { speculation: drafts(15), step_tokens: 512, ..good }),
            ("drafts", EngineConfig { speculation: drafts(16), ..good }),
            ("drafts", EngineConfig { speculation: drafts(0), ..good }),
            ("cache_tokens", EngineConfig { cache_tokens: 15, ..good }),
            ("cache_tokens", EngineConfig { cache_tokens: 1 << 32, ..good }),
        ] {
            let error = bad.validate().expect_err(name).to_string();
            assert!(error.starts_with(&format!("{name}: expected ")), "{error}");
        }
        assert!(EngineConfig { speculation: drafts(15), step_tokens: 513, ..good }.validate().is_ok());
    }
}

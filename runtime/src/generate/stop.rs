/// Finds stop strings across token borders: text that may be the start of one is held back until it's known.
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    pub fn new(stops: &[String]) -> StopMatcher {
        StopMatcher { stops: stops.to_vec(), held: String::new() }
    }

    /// Text that is now known to come before any stop string, and whether one was found behind it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held += text;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| self.overlap(stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest end of the held text that `stop` starts with.
    fn overlap(&self, stop: &str) -> usize {
        stop.char_indices()
            .map(|(at, _)| at)
            .rev()
            .find(|&len| self.held.ends_with(&stop[..len]))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All text given out for `pieces`, and whether a stop string was found.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            let (text, stopped) = matcher.push(piece);
            out += &text;
            if stopped {
                return (out, true);
            }
        }
        (out + &matcher.finish(), false)
    }

    #[test]
    fn stop_strings_are_found_however_the_text_is_cut() {
        let text = "aab é€ aabb fn done";
        for stop in ["aabb", "é€", "b", "done", "nothing"] {
            for width in 1..=4 {
                let chars: Vec<char> = text.chars().collect();
                let pieces: Vec<String> = chars.chunks(width).map(|part| part.iter().collect()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let expected = match text.find(stop) {
                    Some(at) => (text[..at].to_string(), true),
                    None => (text.to_string(), false),
                };
                assert_eq!(run(&[stop], &pieces), expected, "{stop} in pieces of {width}");
            }
        }
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut matcher = StopMatcher::new(&["\n\n".to_string(), "END".to_string()]);
        assert_eq!(matcher.push("ab\n"), ("ab".to_string(), false));
        assert_eq!(matcher.push("c"), ("\nc".to_string(), false));
        assert_eq!(matcher.push(" EN"), (" ".to_string(), false));
        assert_eq!(matcher.push("D of"), (String::new(), true));
    }

    #[test]
    fn the_earliest_stop_string_wins() {
        assert_eq!(run(&["cd", "b"], &["abcd"]), ("a".to_string(), true));
        assert_eq!(run(&[], &["abcd"]), ("abcd".to_string(), false));
    }
}

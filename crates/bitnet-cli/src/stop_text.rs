//! Ends a stream of text where one of some strings begins.

/// Text on its way out. What could be the beginning of a stop string is held back until it is certain.
#[derive(Debug)]
pub(crate) struct StopText {
    stops: Vec<String>,
    held: String,
}

impl StopText {
    /// Empty strings stop nothing.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next text. Gives what is certain to come out, and whether a stop string has followed it.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(end);
            return (std::mem::take(&mut self.held), true);
        }
        let starts = self.held.char_indices().map(|(at, _)| at);
        let is_open = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let certain = { starts }.find(is_open).unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The rest, once nothing follows.
    pub(crate) fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that comes out of these pieces.
    fn through(stops: &[&str], pieces: &[&str]) -> String {
        let mut text = StopText::new(&stops.iter().map(|&stop| stop.to_owned()).collect::<Vec<_>>());
        let mut out = String::new();
        for piece in pieces {
            let (certain, stopped) = text.push(piece);
            out.push_str(&certain);
            if stopped {
                return out;
            }
        }
        out + &text.finish()
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        assert_eq!(through(&["END"], &["one E", "N", "D two"]), "one ");
        assert_eq!(through(&["END"], &["one E", "N", "C two"]), "one ENC two");
        assert_eq!(through(&["END"], &["one EN"]), "one EN");
        assert_eq!(through(&["END"], &["EEND"]), "E");
        assert_eq!(through(&["two", "ne t"], &["one two"]), "o");
        assert_eq!(through(&["ß"], &["stra", "ße"]), "stra");
        assert_eq!(through(&[""], &["a", "b"]), "ab");
        assert_eq!(through(&[], &["a"]), "a");
    }

    #[test]
    fn only_what_could_begin_a_stop_string_waits() {
        let mut text = StopText::new(&["\n\n".to_owned()]);
        assert_eq!(text.push("a\n"), ("a".to_owned(), false));
        assert_eq!(text.push("b"), ("\nb".to_owned(), false));
        assert_eq!(text.push("\n\nc"), (String::new(), true));
    }
}

//! A stream of bytes as lines of bounded length.

use std::borrow::Cow;

/// A longer line is cut.
pub(crate) const LINE: usize = 16 << 10;

/// A line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// With U+FFFD for what is not UTF-8.
    pub(crate) text: Cow<'a, str>,
    /// It goes on in the next one, or its end is not known.
    pub(crate) cut: bool,
}

/// Takes bytes as they come and gives lines, which end with `\n` or `\r\n`.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Of a line that has not ended: `LINE` bytes and a `\r` at most.
    rest: Vec<u8>,
    /// So much of it has no `\n`.
    searched: usize,
}

impl Lines {
    /// Takes in more, and gives every line that is complete with it, and those that are too long in pieces.
    pub(crate) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Line<'_>)) {
        self.rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(piece) = next(&self.rest[at..], std::mem::take(&mut self.searched)) {
            each(line(&self.rest[at..at + piece.text], piece.cut));
            at += piece.whole;
        }
        self.rest.drain(..at);
        self.searched = self.rest.len();
    }

    /// The stream ends here, or goes on after a gap: gives what is left. At the end that is a line like any other.
    pub(crate) fn end(&mut self, cut: bool, each: impl FnOnce(Line<'_>)) {
        if !self.rest.is_empty() {
            each(line(&self.rest, cut));
            self.rest.clear();
            self.searched = 0;
        }
    }
}

fn line(bytes: &[u8], cut: bool) -> Line<'_> {
    Line { text: String::from_utf8_lossy(bytes), cut }
}

/// How long a line is without its end and with it.
struct Piece {
    text: usize,
    whole: usize,
    cut: bool,
}

/// The first line of `bytes`, if they have a whole one or are too long. It does not end in what was `searched`.
fn next(bytes: &[u8], searched: usize) -> Option<Piece> {
    let window = &bytes[..bytes.len().min(LINE + 2)];
    let end = window[searched..].iter().position(|&byte| byte == b'\n').map(|end| searched + end);
    if let Some(end) = end {
        let text = if end > 0 && bytes[end - 1] == b'\r' { end - 1 } else { end };
        if text <= LINE {
            return Some(Piece { text, whole: end + 1, cut: false });
        }
    } else if window.len() < LINE + 2 {
        return None;
    }
    let text = boundary(bytes);
    Some(Piece { text, whole: text, cut: true })
}

/// Where to cut what is too long: not within a character, if it is UTF-8.
fn boundary(bytes: &[u8]) -> usize {
    let begins_a_character = |&at: &usize| bytes[at] & 0b1100_0000 != 0b1000_0000;
    (LINE - 3..=LINE).rev().find(begins_a_character).unwrap_or(LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All lines of a stream that comes in the given pieces; `+` stands for a cut.
    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let mut each = |line: Line<'_>| found.push(format!("{}{}", line.text, if line.cut { "+" } else { "" }));
        for piece in pieces {
            lines.push(piece, &mut each);
        }
        lines.end(false, &mut each);
        lines.end(false, &mut each);
        found
    }

    #[test]
    fn lines_end_with_either_end() {
        assert_eq!(lines(&[b"one\ntwo\r\n\n\r\nlast"]), ["one", "two", "", "", "last"]);
        assert_eq!(lines(&[b"a\rb\n\r\r\n"]), ["a\rb", "\r"]);
        assert_eq!(lines(&[b""]), [""; 0]);
        assert_eq!(lines(&[b"whole\n"]), ["whole"]);
    }

    #[test]
    fn it_does_not_matter_where_the_pieces_end() {
        let text = "é\r\nsecond line\n\n€uro\r\n🙂".as_bytes();
        let whole = lines(&[text]);
        assert_eq!(whole, ["é", "second line", "", "€uro", "🙂"]);
        for at in 0..=text.len() {
            let (a, b) = text.split_at(at);
            assert_eq!(lines(&[a, b]), whole, "split at {at}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(lines(&bytes), whole);
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(lines(&[b"a\xffb\n\xc3\n"]), ["a\u{fffd}b", "\u{fffd}"]);
    }

    #[test]
    fn a_long_line_is_cut() {
        let exact = "x".repeat(LINE);
        for end in ["\n", "\r\n", ""] {
            let text = format!("{exact}{end}");
            assert_eq!(lines(&[text.as_bytes()]), [exact.as_str()], "{end:?}");
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(lines(&bytes), [exact.as_str()], "{end:?}, byte by byte");
        }
        let longer = format!("{exact}y\nz");
        assert_eq!(lines(&[longer.as_bytes()]), [format!("{exact}+"), "y".to_owned(), "z".to_owned()]);
        let endless = vec![b'x'; 3 * LINE + 5];
        let found = lines(&[&endless]);
        assert_eq!(found.iter().map(String::len).collect::<Vec<_>>(), [LINE + 1, LINE + 1, LINE + 1, 5]);
    }

    #[test]
    fn a_cut_is_not_within_a_character() {
        for before in 0..4 {
            let text = format!("{}{}", "x".repeat(LINE - before), "🙂🙂");
            let found = lines(&[text.as_bytes()]);
            assert_eq!(found.concat().replace('+', ""), text, "{before}");
        }
        // What is no text at all is cut all the same.
        let found = lines(&[&[0x80; LINE + 2]]);
        assert_eq!(found.iter().map(|line| line.matches('\u{fffd}').count()).collect::<Vec<_>>(), [LINE, 2]);
    }

    #[test]
    fn little_is_kept() {
        let mut lines = Lines::default();
        for _ in 0..100 {
            lines.push(&[b'x'; LINE / 2], |_| {});
            assert!(lines.rest.len() < LINE + 2);
        }
    }

    #[test]
    fn a_gap_ends_a_line() {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        lines.push(b"half", |line| panic!("{line:?}"));
        lines.end(true, |line| found.push((line.text.into_owned(), line.cut)));
        lines.push(b"of another\n", |line| found.push((line.text.into_owned(), line.cut)));
        assert_eq!(found, [("half".to_owned(), true), ("of another".to_owned(), false)]);
    }
}

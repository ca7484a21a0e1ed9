//! What others wrote, made fit for a terminal or for YAML that somebody pastes.

/// As a terminal may show it: what steers a terminal, breaks the line or turns the reading direction is spelled out. Else a
/// hospital's number could repaint a `Fail` as a `Pass`.
pub fn visible(text: &str) -> String {
    let plain = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().map(|c| if plain(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// A scalar in double quotes, which is that text and nothing else to every YAML reader, and to JSON readers too.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            // Pairs of surrogates beyond U+FFFF, as JSON has them.
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number from the file must not move the cursor to the vote above it, nor begin a line of its own.
    #[test]
    fn what_steers_a_terminal_is_spelled_out() {
        assert_eq!(visible("0.91\u{1b}[1A Pass\n\u{202e}x"), "0.91\\u{1b}[1A Pass\\n\\u{202e}x");
        assert_eq!(visible("Müller, 2 Fälle: \"gut\""), "Müller, 2 Fälle: \"gut\"");
    }

    /// What is pasted into a policy must come out of it as it went in, whatever it is.
    #[test]
    fn a_quoted_scalar_is_read_back_as_it_was() {
        for text in ["on", "1234", "a: b # c", "u\n  approval: Automatic", "\"\\", "\u{85}\u{2028}ü", "{x}", ""] {
            assert_eq!(serde_yaml_ng::from_str::<String>(&quoted(text)).unwrap(), text);
            assert!(quoted(text).bytes().all(|b| (b' '..=b'~').contains(&b)));
        }
    }
}

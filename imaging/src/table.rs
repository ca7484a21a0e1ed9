//! Which scans are of one person: `subjects.csv` or `cases.csv`, as spreadsheets and scripts write them.
//!
//! Commas, semicolons or tabs; quotes; a byte-order mark; either kind of line end; columns in any order and of any case,
//! and others beside them. What is not read is refused with its cause.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::{ErrorKind, ReaderBuilder, StringRecord, Trim};

use crate::error::ScanError;
use crate::msd::{Case, case_id};

/// Bytes of the longest table that is read.
const MAX_BYTES: u64 = 16 << 20;
/// The names of tables, in the order in which they are looked for.
const NAMES: [&str; 2] = ["subjects.csv", "cases.csv"];

/// Case → (subject, regime), as a folder's table tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaseTable {
    /// `None`: the folder has no table.
    file: Option<PathBuf>,
    rows: BTreeMap<String, (String, Option<String>)>,
    /// A second table that is not read.
    unread: Option<PathBuf>,
}

impl CaseTable {
    /// Reads `subjects.csv`, else `cases.csv`, else gives a table that knows no persons.
    pub fn of_folder(folder: &Path) -> Result<Self, ScanError> {
        let mut found = Vec::new();
        for name in NAMES {
            found.extend(file_named(folder, name)?);
        }
        let mut found = found.into_iter();
        let Some(file) = found.next() else { return Ok(Self::default()) };
        Ok(Self { unread: found.next(), ..Self::parse(&file, &read_bounded(&file, MAX_BYTES)?)? })
    }

    /// Reads a table; `file` is for messages.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self, ScanError> {
        let bad = |line: u64, reason: String| ScanError::BadTable { file: file.to_owned(), line, reason };
        let (text, before) = text_of(bytes).map_err(|(line, reason)| bad(line, reason))?;
        if text.trim().is_empty() {
            return Err(bad(1, "the table is empty".into()));
        }
        let (delimiter, columns) = columns_of(text).map_err(|reason| bad(1 + before, reason))?;
        let (case_at, subject_at, regime_at) = (columns.case, columns.subject, columns.regime);
        let mut rows: BTreeMap<String, (String, Option<String>)> = BTreeMap::new();
        let mut lines: BTreeMap<String, u64> = BTreeMap::new();
        let mut reader = reader(text, delimiter);
        let mut row = StringRecord::new();
        let mut counted = Lines { text, at: 0, line: 1 + before };
        while reader.read_record(&mut row).map_err(|e| bad_row(file, &mut counted, &e))? {
            let line = counted.of(row.position());
            let field = |at: usize| row.get(at).unwrap_or_default();
            let (case, subject) = (field(case_at), field(subject_at));
            if case.is_empty() || subject.is_empty() {
                return Err(bad(line, "case and subject must not be empty".into()));
            }
            let case = case_id(case).unwrap_or(case).to_owned();
            if let Some(first) = lines.insert(case.clone(), line) {
                return Err(bad(line, format!("case {case} stands there twice, first in line {first}")));
            }
            let regime = regime_at.map(|at| field(at).to_owned()).filter(|regime| !regime.is_empty());
            rows.insert(case, (subject.to_owned(), regime));
        }
        Ok(Self { file: Some(file.to_owned()), rows, unread: None })
    }

    /// Whether there is a table, so that scans of one person are known as such.
    pub fn knows_persons(&self) -> bool {
        self.file.is_some()
    }

    /// What of a folder's tables is not used, in words.
    pub fn notice(&self) -> Option<String> {
        let (file, unread) = (self.file.as_ref()?, self.unread.as_ref()?);
        Some(format!("{}: not read, because {} is there", unread.display(), file.display()))
    }

    /// The person a case is of: by the table, which must have it, or the case itself where there is no table.
    pub fn subject(&self, case: &str) -> Result<String, ScanError> {
        match (self.rows.get(case), &self.file) {
            (Some((subject, _)), _) => Ok(subject.clone()),
            (None, None) => Ok(case.to_owned()),
            (None, Some(file)) => Err(ScanError::NotInTable { file: file.clone(), case: case.to_owned() }),
        }
    }

    /// The regime of a case, if known.
    pub fn regime(&self, case: &str) -> Option<String> {
        self.rows.get(case).and_then(|(_, regime)| regime.clone())
    }
}

/// Writes the table of some cases, so that a part of a folder keeps knowing who is who.
pub fn write_table(file: &Path, cases: &[Case]) -> Result<(), ScanError> {
    let unwritable = |e: &dyn std::fmt::Display| ScanError::unwritable(file, e);
    let mut writer = csv::Writer::from_path(file).map_err(|e| unwritable(&e))?;
    writer.write_record(["case", "subject", "regime"]).map_err(|e| unwritable(&e))?;
    for case in cases {
        let row = [case.id.as_str(), &case.subject, case.regime.as_deref().unwrap_or("")];
        writer.write_record(row).map_err(|e| unwritable(&e))?;
    }
    writer.flush().map_err(|e| unwritable(&e))
}

/// The file of this name in a folder, in upper or lower case; a link that leads nowhere is one too, since whoever put it
/// there believes that it is read.
///
/// # Errors
/// When there are two of them, or the folder cannot be listed.
pub(crate) fn file_named(folder: &Path, name: &str) -> Result<Option<PathBuf>, ScanError> {
    let mut found: Vec<PathBuf> = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        // Whoever looks for the scans in it says so.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(|e| ScanError::unreadable(folder, &e))?,
    };
    for entry in entries {
        let entry = entry.map_err(|e| ScanError::unreadable(folder, &e))?;
        if entry.file_name().to_str().is_some_and(|known| known.eq_ignore_ascii_case(name)) {
            found.push(entry.path());
        }
    }
    found.sort();
    let Some((last, others)) = found.split_last() else { return Ok(None) };
    match others.first() {
        None => Ok(Some(last.clone())),
        Some(first) => Err(ScanError::BadFolder {
            folder: folder.to_owned(),
            reason: format!("there are both {} and {}; keep one of them", first.display(), last.display()),
        }),
    }
}

/// A file's bytes, when there are not more than `most`.
pub(crate) fn read_bounded(file: &Path, most: u64) -> Result<Vec<u8>, ScanError> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|opened| opened.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|e| ScanError::unreadable(file, &e))?;
    if bytes.len() as u64 > most {
        let reason = format!("it is longer than {most} bytes, which no list of scans is");
        return Err(ScanError::Unreadable { file: file.to_owned(), reason });
    }
    Ok(bytes)
}

/// A table's text and how many lines stand before it; otherwise the line at fault, and why.
fn text_of(bytes: &[u8]) -> Result<(&str, u64), (u64, String)> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err((1, "the file is UTF-16; save it as CSV in UTF-8".into()));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"PK\x03\x04") {
        return Err((1, "this is a spreadsheet, whatever its name says; save it as CSV in UTF-8".into()));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u64;
        (line, format!("byte 0x{:02x} is not UTF-8; save the table as CSV in UTF-8", bytes[e.valid_up_to()]))
    })?;
    if text.contains('\0') {
        return Err((1, "the file is UTF-16 without a mark, or no text; save it as CSV in UTF-8".into()));
    }
    // A spreadsheet's own word on its separator, which is found out without it.
    match text.split_once('\n') {
        Some((first, rest)) if first.trim_end().to_ascii_lowercase().starts_with("sep=") => Ok((rest, 1)),
        _ => Ok((text, 0)),
    }
}

struct Columns {
    case: usize,
    subject: usize,
    regime: Option<usize>,
}

fn reader(text: &str, delimiter: u8) -> csv::Reader<&[u8]> {
    ReaderBuilder::new().delimiter(delimiter).trim(Trim::All).from_reader(text.as_bytes())
}

/// The separator that the header is written with, and where the columns stand.
fn columns_of(text: &str) -> Result<(u8, Columns), String> {
    let header = |delimiter: u8| -> Vec<String> {
        let mut reader = reader(text, delimiter);
        let names = reader.headers().map(|names| names.iter().map(str::to_lowercase).collect());
        names.unwrap_or_default()
    };
    // The one that cuts the header into most columns.
    let mut best = (b',', header(b','));
    for delimiter in [b';', b'\t'] {
        let names = header(delimiter);
        if names.len() > best.1.len() {
            best = (delimiter, names);
        }
    }
    let (delimiter, names) = best;
    let find = |name: &str| -> Result<Option<usize>, String> {
        let mut found = names.iter().enumerate().filter(|(_, column)| *column == name).map(|(at, _)| at);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(format!("column {name} stands there twice")),
            (at, None) => Ok(at),
        }
    };
    let lacks = |name: &str| format!("no column {name}; the columns are: {}", names.join(" | "));
    let case = find("case")?.ok_or_else(|| lacks("case"))?;
    let subject = match find("subject")? {
        Some(at) => at,
        None => find("subject_guess")?.ok_or_else(|| lacks("subject"))?,
    };
    Ok((delimiter, Columns { case, subject, regime: find("regime")? }))
}

fn bad_row(file: &Path, lines: &mut Lines<'_>, error: &csv::Error) -> ScanError {
    let reason = match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields, the header has {expected_len} (a field with a separator in it must stand in quotes)")
        }
        _ => error.to_string(),
    };
    ScanError::BadTable { file: file.to_owned(), line: lines.of(error.position()), reason }
}

/// Counts lines from row to row. The reader's own count stands before the blank lines that it skips.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: u64,
}

impl Lines<'_> {
    fn of(&mut self, position: Option<&csv::Position>) -> u64 {
        let bytes = self.text.as_bytes();
        // Bounded by the table's own length.
        let start = position.map_or(self.at, |position| position.byte() as usize).clamp(self.at, bytes.len());
        let blank = bytes[start..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let row = start + blank;
        self.line += bytes[self.at..row].iter().filter(|byte| **byte == b'\n').count() as u64;
        self.at = row;
        self.line
    }
}

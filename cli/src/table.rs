//! Columns for a terminal.

use crate::text::visible;

/// Lays out rows under headings, two spaces between columns, nothing after the last. Cells may hold what others wrote.
pub fn lay_out(headings: &[&str], rows: &[Vec<String>]) -> String {
    let headings: Vec<String> = headings.iter().map(|h| (*h).to_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&headings).chain(&rows).collect();
    let width =
        |column: usize| all.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    all.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name longer than its heading must not push its row out of line.
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["hippocampus".into(), "1".into()], vec!["x".into(), "".into()]];
        assert_eq!(lay_out(&["STUDY", "ROUND"], &rows), "STUDY        ROUND\nhippocampus  1\nx\n");
    }

    /// A cell that another hospital filled must not pass for a row of its own.
    #[test]
    fn a_cell_stays_in_its_row() {
        let rows = vec![vec!["alder".into(), "Fail\nbirch  Pass".into()]];
        assert_eq!(lay_out(&["SITE", "VOTE"], &rows).lines().count(), 2);
    }
}

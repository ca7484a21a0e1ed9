//! Charts as SVG. Pure.

use std::fmt::Write as _;

use super::plain;

/// Told apart with every kind of colour vision (Okabe and Ito).
const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8f00", "#7f7f7f"];

/// Values of one hospital by round, each from 0 to 1.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(u32, f64)>,
}

/// What one round's time consists of, seconds.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) parts: Vec<(&'static str, f64)>,
}

fn colour(n: usize) -> &'static str {
    COLOURS[n % COLOURS.len()]
}

fn key<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut key = String::from("<div class=\"key\">");
    for (n, name) in names.enumerate() {
        let _ = write!(key, "<span><i style=\"background:{}\"></i>{}</span>", colour(n), plain(name));
    }
    key + "</div>"
}

/// Lines over rounds, the axis from 0 to 1.
pub(super) fn lines(title: &str, lines: &[Line]) -> String {
    let (width, height, left, bottom) = (320.0, 190.0, 28.0, 20.0);
    let last = lines.iter().flat_map(|line| line.points.iter().map(|(round, _)| *round)).max().unwrap_or(1);
    let x =
        |round: u32| left + (width - left - 8.0) * f64::from(round.saturating_sub(1)) / f64::from((last - 1).max(1));
    let y = |value: f64| 8.0 + (height - bottom - 8.0) * (1.0 - value.clamp(0.0, 1.0));
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Dice by round, {}\">",
        plain(title),
        plain(title)
    );
    for step in 0..=4 {
        let value = f64::from(step) / 4.0;
        let at = y(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{width}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"0\" y=\"{:.1}\">{value:.2}</text>",
            at + 4.0
        );
    }
    for round in [1, last] {
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{round}</text>", x(round), height - 4.0);
    }
    for (n, line) in lines.iter().enumerate() {
        let points: Vec<String> = line.points.iter().map(|(r, v)| format!("{:.1},{:.1}", x(*r), y(*v))).collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            points.join(" "),
            colour(n)
        );
        for (round, value) in &line.points {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"><title>{}, round {round}: {value:.4}</title></circle>",
                x(*round),
                y(*value),
                colour(n),
                plain(&line.name)
            );
        }
    }
    svg + "</svg>" + &key(lines.iter().map(|line| line.name.as_str())) + "</figure>"
}

/// A bar for each round, its parts side by side, all on one scale.
pub(super) fn bars(bars: &[Bar]) -> String {
    let Some(first) = bars.first() else { return String::new() };
    let (width, left, each) = (640.0, 64.0, 22.0);
    let total = |bar: &Bar| bar.parts.iter().map(|(_, seconds)| seconds).sum::<f64>();
    let longest = bars.iter().map(total).fold(f64::MIN_POSITIVE, f64::max);
    let height = each * bars.len() as f64;
    let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Seconds by round\">");
    for (row, bar) in bars.iter().enumerate() {
        let (top, mut from) = (each * row as f64, left);
        let _ = write!(svg, "<text x=\"0\" y=\"{:.1}\">{}</text>", top + 15.0, plain(&bar.name));
        for (n, (name, seconds)) in bar.parts.iter().enumerate() {
            let wide = (width - left - 60.0) * seconds / longest;
            let _ = write!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{wide:.1}\" height=\"16\" fill=\"{}\"><title>{name}: {seconds:.1} s</title></rect>",
                top + 3.0,
                colour(n)
            );
            from += wide;
        }
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{:.1} s</text>", from + 6.0, top + 15.0, total(bar));
    }
    svg + "</svg>" + &key(first.parts.iter().map(|(name, _)| *name))
}

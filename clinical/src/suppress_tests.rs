//! Nobody who knows the rules and everything that is shown can say what a hidden count is.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::evidence::Figure;
use crate::stats::Interval;
use crate::testing::cases;

#[test]
fn counts_are_hidden_and_rounded_as_the_nhs_does() {
    for (count, text) in [(0, "0"), (1, "*"), (7, "*"), (8, "10"), (12, "10"), (13, "15"), (102, "100")] {
        assert_eq!(shown(count).to_string(), text, "{count}");
    }
    let text = |cells: &[u32]| table(cells).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(text(&[3, 50, 20, 0]), "* 50 * 0", "the next smallest that is not 0 goes with it");
    assert_eq!(text(&[3, 4, 50]), "* * 50");
    assert_eq!(text(&[3, 0, 0]), "* 0 0", "then the total is small itself");
    assert_eq!(text(&[20, 20]), "20 20");
}

/// The least number of values that each hidden cell may have, for every view of every pair of tables with one total up to
/// a bound: the attacker knows the rules and the rounded total, and sees both tables. Computed by trying every pair.
#[test]
fn no_hidden_cell_can_be_solved_for() {
    const MOST: u32 = 18;
    type View = (Shown, Vec<Shown>, Vec<Shown>);
    type Tables = Vec<Vec<u32>>;
    let tables = |width: usize| {
        let mut all: Vec<Vec<u32>> = vec![vec![]];
        for _ in 0..width {
            all = all.iter().flat_map(|t| (0..=MOST).map(move |n| [t.clone(), vec![n]].concat())).collect();
        }
        all.retain(|t| t.iter().sum::<u32>() <= MOST + 8);
        all
    };
    for (left, right) in [(2, 1), (2, 2), (3, 1), (3, 2)] {
        let mut by_total: HashMap<u32, (Tables, Tables)> = HashMap::new();
        for t in tables(left) {
            by_total.entry(t.iter().sum()).or_default().0.push(t);
        }
        for t in tables(right) {
            by_total.entry(t.iter().sum()).or_default().1.push(t);
        }
        let mut views: HashMap<View, Vec<BTreeSet<u32>>> = HashMap::new();
        for (total, (firsts, seconds)) in &by_total {
            for (a, b) in firsts.iter().flat_map(|a| seconds.iter().map(move |b| (a, b))) {
                let seen = views
                    .entry((shown(*total), table(a), table(b)))
                    .or_insert_with(|| vec![BTreeSet::new(); left + right]);
                a.iter().chain(b).zip(seen).for_each(|(n, values)| {
                    values.insert(*n);
                });
            }
        }
        for ((total, a, b), values) in views {
            // Beyond, the tables that were tried end, not the ones that there are.
            if matches!(total, Shown::About(t) if t > 15) {
                continue;
            }
            for (cell, values) in a.iter().chain(&b).zip(&values) {
                let hidden = *cell == Shown::Hidden;
                assert!(!hidden || values.len() >= 3, "{total} {a:?} {b:?}: a hidden cell is one of {values:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Of any table: for each hidden cell there is another table with the same view, the same rounded total and another
    /// number in that cell.
    #[test]
    fn each_hidden_cell_has_another_value_that_shows_the_same(
        cells in prop::collection::vec(prop_oneof![3 => 0..12u32, 1 => 12..400u32], 1..9),
    ) {
        let view = |cells: &[u32]| (shown(cells.iter().sum()), table(cells));
        let seen = view(&cells);
        for (n, _) in seen.1.iter().enumerate().filter(|(_, cell)| **cell == Shown::Hidden) {
            let near = |value: u32| [value.wrapping_add(1), value.wrapping_sub(1)];
            let mut others: Vec<Vec<u32>> = Vec::new();
            for value in near(cells[n]) {
                let mut other = cells.clone();
                other[n] = value;
                others.push(other.clone());
                for m in (0..cells.len()).filter(|m| *m != n) {
                    for value in near(cells[m]) {
                        let mut both = other.clone();
                        both[m] = value;
                        others.push(both);
                    }
                }
            }
            let sane = |other: &&Vec<u32>| other.iter().all(|value| *value < 1000);
            prop_assert!(others.iter().filter(sane).any(|other| view(other) == seen), "{:?} {:?}", cells, seen);
        }
    }
}

fn summary(tp: u32, fn_: u32, fp: u32, tn: u32) -> Summary {
    let share = |hits: u32, misses: u32| Figure {
        estimate: f64::from(hits) / f64::from(hits + misses),
        effective: f64::from(hits + misses),
        interval: Interval { lower: 0.123_456, upper: 0.987_654 },
    };
    Summary {
        cases: tp + fn_ + fp + tn + 15,
        confusion: Confusion { true_positive: tp, false_negative: fn_, false_positive: fp, true_negative: tn },
        figures: [
            (Metric::Sensitivity, share(tp, fn_)),
            (Metric::Specificity, share(tn, fp)),
            (Metric::Ppv, share(tp, fp)),
            (Metric::Agreement, share(90, 10)),
        ]
        .into(),
        ..Summary::default()
    }
}

/// 97 % of about a hundred is three missed: a share gives its counts away.
#[test]
fn a_figure_of_a_hidden_count_is_hidden_and_others_are_rounded() {
    let good = publish(&summary(97, 3, 20, 80));
    assert_eq!(good.figures.keys().collect::<Vec<_>>(), [&Metric::Specificity, &Metric::Ppv]);
    assert_eq!(good.figures[&Metric::Specificity], [0.8, 0.12, 0.99]);
    let text: Vec<String> = good.truth.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["95", "*", "20", "80", "*"], "those without truth are the next smallest");
    let few = publish(&summary(97, 3, 10, 80));
    assert_eq!(few.figures.len(), 0, "what is hidden to protect another gives it away as well");
    assert_eq!(publish(&summary(20, 20, 20, 20)).figures.len(), 3, "agreement's counts are not in the table");
}

/// Those that belong to no group are a cell as well: or the one small group is the rest.
#[test]
fn the_rest_of_a_dimension_is_protected_too() {
    let mut with = summary(93, 0, 0, 92);
    let group = |cases| Group { cases, ..Group::default() };
    with.groups
        .insert("sex".parse().unwrap(), [("F".parse().unwrap(), group(97)), ("M".parse().unwrap(), group(100))].into());
    let published = publish(&with);
    let sex = &published.groups[&"sex".parse().unwrap()];
    assert_eq!(sex[&"F".parse().unwrap()], Shown::Hidden, "three have no group");
    assert_eq!(sex[&"M".parse().unwrap()], Shown::About(100));
}

//! A failing schedule with as little in it as still fails by the same rule.

use crate::check::Violation;
use crate::schedule::Schedule;

/// Runs that shrinking may take.
const MOST: usize = 400;

/// Takes out what is not needed, in halves, quarters, down to single things.
pub fn shrink<T>(schedule: &Schedule, rule: &'static str, run: impl Fn(&Schedule) -> Result<T, Violation>) -> Schedule {
    let mut best = schedule.clone();
    let mut left = MOST;
    let mut size = best.ops.len().div_ceil(2);
    while size > 0 && left > 0 {
        let (mut begin, mut smaller) = (0, false);
        while begin < best.ops.len() && left > 0 {
            let mut ops = best.ops.clone();
            ops.drain(begin..(begin + size).min(ops.len()));
            let tried = Schedule { ops, ..best };
            left -= 1;
            if run(&tried).is_err_and(|violation| violation.rule == rule) {
                best = tried;
                smaller = true;
            } else {
                begin += size;
            }
        }
        if size == 1 && !smaller {
            break;
        }
        size = (size / 2).max(usize::from(smaller));
    }
    best
}

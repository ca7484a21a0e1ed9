//! A hub and four hospitals, each a real Kubernetes cluster in a network namespace of its own, on phantoms.
//!
//! Run by `cargo xtask test` (stage e2e). The scenarios share the clusters and run one after the other; each says what
//! would break for whom. Without root there are no clusters, and the run fails saying so.

mod dropouts;
mod faults;
mod harness;
mod refusals;
mod rosters;
mod spine;
mod stops;
mod store;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::run(&[
        ("a_study_with_a_bad_reference_is_refused_with_the_field_and_the_way_out", refusals::bad_reference),
        ("a_hospital_may_refuse_and_an_edit_needs_a_new_approval", refusals::refusal_and_edit),
        ("two_rounds_a_release_and_an_answer_in_each_hospital", spine::train_release_promote_ask),
        // The probe pods have come to an end by now, and every policy says whether they were shut in.
        ("nothing_enters_a_hospital_and_task_pods_reach_one_address", spine::firewall),
        ("a_promotion_whose_digest_does_not_match_goes_nowhere", refusals::wrong_digest),
        ("broken_data_in_one_hospital_is_one_clear_condition_and_costs_the_others_nothing", refusals::broken_data),
        ("without_masks_a_hospital_takes_part_only_if_it_says_so", refusals::plaintext),
        ("a_killed_hub_and_a_killed_agent_cost_no_second_training", faults::kills),
        ("a_hospital_lost_before_its_upload_is_left_out_and_one_killed_after_it_is_in_the_sum", dropouts::dropouts),
        ("a_hospital_off_the_roster_is_in_no_sum_until_it_is_listed_again", rosters::leave_and_join),
        ("a_hospital_stops_everything_with_the_hub_away_and_with_no_agent", stops::stops),
        ("deleting_a_study_in_the_middle_of_a_round_leaves_nothing_behind", faults::deletion),
    ])
}

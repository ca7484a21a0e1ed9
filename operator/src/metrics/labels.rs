//! Labels: closed sets.

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$value_doc])* $value),+ }

        impl $name {
            /// The label's value.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$value => stringify!($value)),+ }
            }
        }
    };
}

label!(
    /// A controller, by the kind that it reconciles.
    Controller {
        /// TrustSite.
        TrustSite,
        /// FederatedStudy.
        Study,
        /// TrainingRound.
        Round,
        /// ModelRelease.
        Release,
        /// ModelPromotion.
        Promotion,
        /// ClinicalPlan.
        Plan,
    }
);
label!(
    /// How a reconcile ended: the class that decides when it runs again.
    ReconcileResult {
        /// Nothing is left to do.
        Ok,
        /// The object is wrong; it waits for a change.
        Invalid,
        /// Something else failed; it is tried again with back-off.
        Transient,
        /// Someone else wrote first; it is tried again soon.
        Conflict,
        /// It should not have happened.
        Bug,
    }
);
label!(
    /// A stage of a round.
    RoundStage {
        /// Hospitals train.
        Training,
        /// Updates are summed.
        Aggregating,
        /// Hospitals score the new model.
        Evaluating,
    }
);
label!(
    /// Why the gateway refused a call before looking at it.
    Refusal {
        /// The certificate names no hospital.
        NoIdentity,
        /// The hospital is not (or no longer) accepted.
        NotAccepted,
        /// Two agents speak with one certificate.
        TwoAgents,
        /// The call concerns work that the hospital was not given.
        NotAssigned,
        /// The store has no room for the upload.
        StoreFull,
    }
);

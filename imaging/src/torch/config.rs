//! A network as a study's configuration and a release name it.

use serde::{Deserialize, Serialize};

use super::unet::UNet3dConfig;
use crate::input::Input;

/// The network by kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Network {
    /// A 3D U-Net with instance norm.
    UNet3D {
        /// Channels at full resolution.
        #[serde(default = "eight")]
        width: u32,
        /// Halvings.
        #[serde(default = "three")]
        levels: u32,
        /// Classes, background included.
        classes: u8,
        /// What it sees of a scan. It stands here, where no field is passed over: a server that does not know it must
        /// refuse the model, and not show it scans as it never saw them.
        #[serde(default, skip_serializing_if = "Input::is_plain")]
        input: Input,
    },
}

const fn three() -> u32 {
    3
}
const fn eight() -> u32 {
    8
}

impl Network {
    /// The numbers to build it with.
    pub fn unet(&self) -> UNet3dConfig {
        let &Self::UNet3D { width, levels, classes, .. } = self;
        UNet3dConfig { width, levels, classes }
    }

    /// What it sees of a scan.
    pub fn input(&self) -> &Input {
        let Self::UNet3D { input, .. } = self;
        input
    }

    /// Refuses numbers no network can have; the message names field, value and rule.
    pub fn check(&self) -> Result<(), String> {
        let net = self.unet();
        let fail =
            |field: &str, value: u32, rule: &str| Err(format!("config.network.{field} is {value}: it must be {rule}"));
        if !(1..=256).contains(&net.width) {
            return fail("width", net.width, "from 1 to 256");
        }
        if !(1..=6).contains(&net.levels) {
            return fail("levels", net.levels, "from 1 to 6");
        }
        if net.classes < 2 {
            return fail("classes", u32::from(net.classes), "at least 2 (background and one structure)");
        }
        self.input().check()
    }
}

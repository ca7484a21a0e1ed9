//! Which bearer token stands for which pod. Only hashes are kept: a copy of the volume opens nothing.

use consilium_federation::Digest;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{State, StateError, to_json};

const TOKENS: TableDefinition<&str, &[u8]> = TableDefinition::new("tokens");
/// Newest try of each task.
const TRIES: TableDefinition<&str, u32> = TableDefinition::new("tries");

/// What a token lets its holder do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    /// Fetch and deliver for one try of a task.
    Task {
        /// UID of the RoundTask.
        uid: String,
        /// Its name.
        name: String,
        /// The try: the fencing token.
        r#try: u32,
    },
    /// Fetch the model of a deployment.
    Deployment {
        /// UID of the ModelDeployment.
        uid: String,
        /// Its name.
        name: String,
    },
}

impl Grant {
    /// UID of the object that the grant belongs to.
    pub fn owner(&self) -> &str {
        match self {
            Grant::Task { uid, .. } | Grant::Deployment { uid, .. } => uid,
        }
    }
}

/// A token that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// What it is for.
    pub grant: Grant,
    /// No later try of the same task exists. Only the newest may deliver.
    pub newest: bool,
}

pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StateError> {
    write.open_table(TOKENS)?;
    write.open_table(TRIES)?;
    Ok(())
}

impl State {
    /// Makes a token known by its hash. A try outdates the tries before it.
    pub fn put_token(&self, hash: Digest, grant: &Grant) -> Result<(), StateError> {
        let write = self.0.db.begin_write()?;
        write.open_table(TOKENS)?.insert(hash.to_string().as_str(), to_json("token", grant)?.as_slice())?;
        if let Grant::Task { uid, r#try, .. } = grant {
            let mut tries = write.open_table(TRIES)?;
            let newest = tries.get(uid.as_str())?.map_or(0, |value| value.value());
            tries.insert(uid.as_str(), newest.max(*r#try))?;
        }
        Ok(write.commit()?)
    }

    /// What a token is for, by its hash.
    pub fn token(&self, hash: Digest) -> Result<Option<Granted>, StateError> {
        let Some(grant) = self.read_json::<Grant>(TOKENS, &hash.to_string())? else { return Ok(None) };
        let newest = match &grant {
            Grant::Deployment { .. } => true,
            Grant::Task { uid, r#try, .. } => {
                let read = self.0.db.begin_read()?;
                let newest = read.open_table(TRIES)?.get(uid.as_str())?.map(|value| value.value());
                newest == Some(*r#try)
            }
        };
        Ok(Some(Granted { grant, newest }))
    }

    /// Forgets a token that nothing shows.
    pub fn delete_token(&self, hash: Digest) -> Result<(), StateError> {
        self.remove(TOKENS, &hash.to_string())
    }

    /// Forgets every token of a task or deployment.
    pub fn delete_tokens(&self, owner_uid: &str) -> Result<(), StateError> {
        let write = self.0.db.begin_write()?;
        write.open_table(TOKENS)?.retain(|_, bytes| {
            let grant: Option<Grant> = serde_json::from_slice(bytes).ok();
            // One of a kind that a later agent wrote is another's.
            grant.is_none_or(|grant| grant.owner() != owner_uid)
        })?;
        write.open_table(TRIES)?.remove(owner_uid)?;
        Ok(write.commit()?)
    }
}

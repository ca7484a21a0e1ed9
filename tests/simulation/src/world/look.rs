//! What is looked at after each thing that happens.

use super::*;

impl World {
    /// Looks whether everything holds.
    pub(super) async fn look(&mut self) -> Result<(), Violation> {
        let rounds: Vec<_> = {
            let api = lock(&self.api);
            api.rounds.values().map(|(_, round)| round.clone()).chain(api.gone.iter().cloned()).collect()
        };
        for round in &rounds {
            in_time(round, self.turned)?;
            if let Some(sum) = self.seen.look(round)? {
                let (base, new) = (self.parameters(round.spec.base_model).await?, self.parameters(sum.model).await?);
                sum.check(&base, &new)?;
            }
        }
        for hospital in self.hospitals.iter().filter(|hospital| !hospital.restored) {
            trainings(hospital.index, &hospital.cluster.trained())?;
        }
        Ok(())
    }

    async fn object(&self, digest: Digest) -> Result<Bytes, Violation> {
        let hex = digest.hex();
        let path = Path::from(format!("objects/{}/{hex}", &hex[..2]));
        let found = self.objects.get(&path).await.map_err(stuck("an object"))?;
        found.bytes().await.map_err(stuck("an object"))
    }

    async fn parameters(&self, model: Digest) -> Result<Vec<f32>, Violation> {
        let manifest = self.object(model).await?;
        let manifest = ModelManifest::parse(&manifest, model).map_err(stuck("a manifest"))?;
        let mut all = Vec::new();
        for chunk in &manifest.chunks {
            let bytes = self.object(*chunk).await?;
            all.extend(bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)));
        }
        Ok(all)
    }
}

//! Adam (Kingma and Ba, 2015) with its state in the open, so that a checkpoint can hold all of it: torch's own keeps the
//! moments where its Rust binding cannot reach them.

use tch::{Kind, TchError, Tensor, no_grad};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The optimiser: per parameter its moments.
#[derive(Debug)]
pub struct Adam {
    parameters: Vec<(String, Tensor)>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: u64,
}

impl Adam {
    /// Starts with moments of zero. The tensors share memory with the network's.
    pub fn new(parameters: Vec<(String, Tensor)>) -> Result<Self, TchError> {
        let zeros = |(_, p): &(String, Tensor)| p.f_zeros_like().map(|z| z.set_requires_grad(false));
        let first = parameters.iter().map(zeros).collect::<Result<_, _>>()?;
        let second = parameters.iter().map(zeros).collect::<Result<_, _>>()?;
        Ok(Self { parameters, first, second, steps: 0 })
    }

    /// Forgets the gradients of the step before.
    pub fn zero_grad(&mut self) {
        for (_, parameter) in &mut self.parameters {
            parameter.zero_grad();
        }
    }

    /// Whether every gradient is finite; asked only in half precision, where overflow is part of the game.
    pub fn gradients_finite(&self) -> Result<bool, TchError> {
        for (_, parameter) in &self.parameters {
            if !bool::try_from(parameter.grad().f_isfinite()?.f_all()?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies of the parameters as they are now.
    pub fn anchor(&self) -> Result<Vec<Tensor>, TchError> {
        self.parameters.iter().map(|(_, parameter)| parameter.f_detach_copy()).collect()
    }

    /// The gradients, in the parameters' order; they share memory with the parameters' own.
    pub fn gradients(&self) -> Vec<Tensor> {
        self.parameters.iter().map(|(_, parameter)| parameter.grad()).collect()
    }

    /// A number that no parameter changes: its gradients are 0, and there.
    pub fn nothing(&self) -> Result<Tensor, TchError> {
        let zero = |(_, parameter): &(String, Tensor)| parameter.f_sum(Kind::Float)?.f_mul_scalar(0.0);
        let all = self.parameters.iter().map(zero).collect::<Result<Vec<_>, _>>()?;
        Tensor::f_stack(&all, 0)?.f_sum(Kind::Float)
    }

    /// Adds to the gradients that of strength / 2 · ‖parameters − anchor‖²: what holds a hospital's model near the one
    /// that all began with (FedProx; Li et al., 2020).
    pub fn hold(&mut self, anchor: &[Tensor], strength: f64) -> Result<(), TchError> {
        no_grad(|| {
            for ((_, parameter), anchor) in self.parameters.iter().zip(anchor) {
                let _ = parameter.grad().f_add_(&parameter.f_sub(anchor)?.f_mul_scalar(strength)?)?;
            }
            Ok(())
        })
    }

    /// One step with the gradients divided by `grad_scale`. The operations and their order are those of
    /// `torch.optim.Adam`, so that both give the same bits.
    pub fn step(&mut self, rate: f64, grad_scale: f64) -> Result<(), TchError> {
        self.steps += 1;
        let t = self.steps as f64;
        let (correction1, correction2) = (1.0 - BETA1.powf(t), 1.0 - BETA2.powf(t));
        no_grad(|| {
            for ((_, parameter), (m, v)) in self.parameters.iter_mut().zip(self.first.iter_mut().zip(&mut self.second))
            {
                let mut gradient = parameter.grad();
                if grad_scale != 1.0 {
                    gradient = gradient.f_div_scalar(grad_scale)?;
                }
                let _ = m.f_lerp_(&gradient, 1.0 - BETA1)?;
                let _ = v.f_mul_scalar_(BETA2)?;
                let _ = v.f_addcmul_(&gradient.f_mul_scalar(1.0 - BETA2)?, &gradient)?;
                let spread = v.f_sqrt()?.f_div_scalar(correction2.sqrt())?.f_add_scalar(EPSILON)?;
                let _ = parameter.f_addcdiv_(&m.f_mul_scalar(-rate / correction1)?, &spread)?;
            }
            Ok(())
        })
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Parameters and moments by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |prefix: &str, tensors: &mut dyn Iterator<Item = &Tensor>| -> Vec<(String, Tensor)> {
            self.parameters
                .iter()
                .zip(tensors)
                .map(|((name, _), tensor)| (format!("{prefix}.{name}"), tensor.shallow_clone()))
                .collect()
        };
        let mut all = named("parameter", &mut self.parameters.iter().map(|(_, p)| p));
        all.extend(named("first", &mut self.first.iter()));
        all.extend(named("second", &mut self.second.iter()));
        all
    }

    /// Takes a checkpoint's state; the count of steps with it. An error says which tensor does not fit.
    pub fn restore(&mut self, state: &[(String, Tensor)], steps: u64) -> Result<(), TchError> {
        for (name, mut tensor) in self.state() {
            let saved = state.iter().find(|(known, _)| *known == name).map(|(_, saved)| saved);
            let saved = saved.filter(|saved| saved.size() == tensor.size() && saved.kind() == Kind::Float);
            let saved = saved.ok_or_else(|| TchError::TensorNameNotFound(name, "the checkpoint".into()))?;
            no_grad(|| tensor.f_copy_(saved))?;
        }
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gradient of μ/2·‖w − a‖² is μ(w − a), beside the loss's own: by hand, w = (1, 2), a = (0, 5), loss Σw².
    #[test]
    fn what_holds_is_the_gradient_of_a_distance() {
        let w = Tensor::from_slice(&[1.0_f32, 2.0]).set_requires_grad(true);
        let mut adam = Adam::new(vec![("w".into(), w.shallow_clone())]).unwrap();
        assert_eq!(adam.anchor().unwrap()[0], w);
        (&w * &w).sum(Kind::Float).backward();
        adam.hold(&[Tensor::from_slice(&[0.0_f32, 5.0])], 0.5).unwrap();
        assert_eq!(Vec::<f32>::try_from(w.grad()).unwrap(), [2.5, 2.5]);
    }
}

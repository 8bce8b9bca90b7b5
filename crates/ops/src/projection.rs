//! A product with a weight matrix, with what stands before and after it in a transformer layer: the norm of its input, and
//! an activation or a residual addition.
//!
//! The composition of the single operations says what is computed. Where the batch is small, the CUDA backend computes
//! it in one or two kernels, and wgpu takes norms and activations into the product: then a step waits for kernels to start
//! more than for their work.

use burn::tensor::Tensor;

use crate::{Activation, Weight, activation, gated_activation, layer_norm, linear, linear_add, rms_norm};

/// Normalisation of rows: root-mean-square, or layer normalisation where there is a bias.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// `[H]`, 32-bit floats.
    pub weight: &'a Tensor<1>,
    /// `[H]`, 32-bit floats.
    pub bias: Option<&'a Tensor<1>>,
    /// Added to the mean of the squares.
    pub eps: f32,
}

impl RowNorm<'_> {
    /// The normalised rows.
    pub fn of(&self, x: Tensor<2>) -> Tensor<2> {
        match self.bias {
            None => rms_norm(x, self.weight, self.eps),
            Some(bias) => layer_norm(x, self.weight, bias, self.eps),
        }
    }
}

/// A weight matrix with an optional bias, and the norm of its input.
#[derive(Clone, Copy, Debug)]
pub struct Projection<'a> {
    /// Of the rows before the product.
    pub norm: Option<RowNorm<'a>>,
    /// `[N, K]`.
    pub weight: &'a Weight,
    /// `[N]`, 32-bit floats.
    pub bias: Option<&'a Tensor<1>>,
}

impl Projection<'_> {
    /// `linear(norm(x))`.
    fn of(&self, x: Tensor<2>) -> Tensor<2> {
        linear(self.normed(x), self.weight, self.bias)
    }

    fn normed(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.norm {
            Some(norm) => norm.of(x),
            None => x,
        }
    }
}

/// What becomes of the outputs of a product.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // made for one call
pub enum Then {
    /// They are the result.
    Keep,
    /// They are added to these rows.
    AddTo(Tensor<2>),
    /// They go through [`activation`].
    Activate(Activation),
    /// They go through [`gated_activation`]: the first half are the gates.
    Gate(Activation),
}

/// Rows of a residual stream, with what their norm needs where the product that they come from left it beside them.
#[derive(Clone, Debug)]
pub struct Stream {
    rows: Tensor<2>,
    /// Of [`PreparedNorm`](crate::backend::PreparedNorm).
    #[cfg(feature = "cuda")]
    prepared: Option<(Tensor<2>, Tensor<2>)>,
}

impl From<Tensor<2>> for Stream {
    fn from(rows: Tensor<2>) -> Self {
        Self {
            rows,
            #[cfg(feature = "cuda")]
            prepared: None,
        }
    }
}

impl Stream {
    /// `[T, H]`.
    pub fn rows(&self) -> &Tensor<2> {
        &self.rows
    }

    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn is_prepared(&self) -> bool {
        self.prepared.is_some()
    }

    /// The same, without the rest.
    pub fn into_rows(self) -> Tensor<2> {
        self.rows
    }
}

/// `then(linear(norm(x)))`: the operations one after the other, or fewer kernels with the same results. A norm that was prepared is
/// the one that [`project_onto`] was told.
pub fn project(x: impl Into<Stream>, projection: Projection, then: Then) -> Tensor<2> {
    let x = x.into();
    #[cfg(feature = "cuda")]
    if let Some(part) = on_cuda::single_part(x.rows(), projection.weight) {
        return on_cuda::project(x, part, projection, then);
    }
    let x = x.into_rows();
    #[cfg(feature = "wgpu")]
    if let Some(part) = on_wgpu::single_part(&x, projection, &then) {
        return on_wgpu::project(x, part, projection, then);
    }
    match then {
        Then::Keep => projection.of(x),
        Then::AddTo(residual) => linear_add(projection.normed(x), projection.weight, projection.bias, residual),
        Then::Activate(kind) => activation(projection.of(x), kind),
        Then::Gate(kind) => gated_activation(projection.of(x), kind),
    }
}

/// `residual + linear(norm(x))`, whose rows `next`, if it is given, will be applied to: the CUDA backend does a part of that in the
/// same kernel, where the next product's can do the rest.
pub fn project_onto(residual: Tensor<2>, x: Tensor<2>, projection: Projection, next: Option<RowNorm>) -> Stream {
    #[cfg(feature = "cuda")]
    if let Some((part, next)) = on_cuda::single_part(&x, projection.weight).zip(next.filter(|norm| norm.bias.is_none()))
    {
        return on_cuda::project_onto(residual, x, (part, projection), next);
    }
    let _ = next;
    project(x, projection, Then::AddTo(residual)).into()
}

/// The same through operations of the wgpu backend's own.
#[cfg(feature = "wgpu")]
mod on_wgpu {
    use burn::backend::Dispatch;
    use burn::tensor::Tensor;

    use super::{Projection, Then};
    use crate::backend::{
        Activated, FusedPackedOps, FusedProjections, Optional, ProjectionInputs, Surroundings, WeightTensors,
    };
    use crate::weight::Part;
    use crate::wgpu::takes_norms;
    use crate::{Backend, backend_of};

    /// The weights, if the product takes its norm or its activation into the same kernel here: for few rows whose elements
    /// can be read four at a time, and weights that are one tensor.
    pub(super) fn single_part(x: &Tensor<2>, projection: Projection, then: &Then) -> Option<Part> {
        let [rows, columns] = x.dims();
        let takes_norm = projection.norm.is_some_and(|norm| norm.bias.is_none());
        let takes_activation = matches!(then, Then::Activate(_) | Then::Gate(_));
        let [part] = projection.weight.parts() else { return None };
        let fuses = (takes_norm || takes_activation) && takes_norms([rows, columns]) && columns.is_multiple_of(4);
        (fuses && backend_of(&x.device()) == Backend::Wgpu).then(|| part.clone())
    }

    pub(super) fn project(x: Tensor<2>, part: Part, projection: Projection, then: Then) -> Tensor<2> {
        let ([rows, columns], [products, inputs]) = (x.dims(), part.dims());
        assert_eq!(columns, inputs, "project: input length");
        assert!(projection.bias.is_none_or(|bias| bias.dims()[0] == products), "project: bias length");
        let (residual, activated) = match then {
            Then::Keep => (None, Activated::Not),
            Then::AddTo(residual) => (Some(residual), Activated::Not),
            Then::Activate(kind) => (None, Activated::All(kind)),
            Then::Gate(kind) => (None, Activated::Gated(kind)),
        };
        assert!(residual.as_ref().is_none_or(|sums| sums.dims() == [rows, products]), "project: residual shape");
        // A layer norm stands before the product.
        let (x, norm) = match projection.norm {
            Some(norm) if norm.bias.is_some() => (norm.of(x), None),
            norm => (x, norm),
        };
        assert!(norm.is_none_or(|norm| norm.weight.dims()[0] == inputs), "project: length of the norm");
        let norm_weight = Optional::of(norm.map(|norm| norm.weight.clone()));
        let norm_eps = norm.map_or(0.0, |norm| norm.eps);
        let (bias, residual) = (Optional::of(projection.bias.cloned()), Optional::of(residual));
        let x = x.into_dispatch();
        Tensor::from_dispatch(match part {
            Part::Dense(values) => {
                let (weight, norm_bias) = (WeightTensors::Floats(values.into_dispatch()), Optional::Absent);
                Dispatch::project(ProjectionInputs {
                    x,
                    norm_weight,
                    norm_bias,
                    norm_eps,
                    #[cfg(feature = "cuda")]
                    prepared: crate::backend::PreparedNorm::Absent,
                    weight,
                    bias,
                    residual,
                    activated,
                })
            }
            Part::Packed(words, packing) => {
                let around = Surroundings { norm_weight, norm_eps, bias, residual, activated };
                Dispatch::project_packed(x, words.into_dispatch(), packing, around)
            }
            Part::Fp8(..) => unreachable!("`Weight::fp8` refuses wgpu"),
        })
    }
}

/// The same through the CUDA backend's own operations.
#[cfg(feature = "cuda")]
pub(crate) mod on_cuda {
    use burn::backend::{Dispatch, tensor::FloatTensor};
    use burn::tensor::Tensor;

    use super::{Projection, RowNorm, Stream, Then};
    use crate::backend::{
        Activated, FusedLayers, FusedProjections, Optional, PreparedNorm, ProjectionInputs, WeightTensors,
    };
    use crate::weight::Part;
    use crate::{Backend, Weight, backend_of};

    /// The weights, if this is CUDA and they are one part.
    pub(crate) fn single_part<'a>(x: &Tensor<2>, weight: &'a Weight) -> Option<&'a Part> {
        match weight.parts() {
            [part] if backend_of(&x.device()) == Backend::Cuda => Some(part),
            _ => None,
        }
    }

    /// `x · partᵀ + bias + residual`.
    pub(crate) fn multiply(
        x: FloatTensor<Dispatch>,
        part: &Part,
        bias: Optional<Dispatch>,
        residual: Optional<Dispatch>,
    ) -> FloatTensor<Dispatch> {
        Dispatch::project(ProjectionInputs {
            x,
            norm_weight: Optional::Absent,
            norm_bias: Optional::Absent,
            norm_eps: 0.0,
            prepared: PreparedNorm::Absent,
            weight: tensors(part),
            bias,
            residual,
            activated: Activated::Not,
        })
    }

    fn tensors(part: &Part) -> WeightTensors<Dispatch> {
        match part {
            Part::Dense(values) => WeightTensors::Floats(values.clone().into_dispatch()),
            Part::Fp8(codes, scales) => {
                WeightTensors::Codes(codes.clone().into_dispatch(), scales.clone().into_dispatch())
            }
            Part::Packed(..) => unreachable!("`Weight::packed` refuses CUDA"),
        }
    }

    pub(super) fn project(x: Stream, weight: &Part, projection: Projection, then: Then) -> Tensor<2> {
        let (residual, activated) = match then {
            Then::Keep => (None, Activated::Not),
            Then::AddTo(residual) => (Some(residual), Activated::Not),
            Then::Activate(kind) => (None, Activated::All(kind)),
            Then::Gate(kind) => (None, Activated::Gated(kind)),
        };
        let mut inputs = adding(residual, x, weight, projection);
        inputs.activated = activated;
        Tensor::from_dispatch(Dispatch::project(inputs))
    }

    pub(super) fn project_onto(
        residual: Tensor<2>,
        x: Tensor<2>,
        (weight, projection): (&Part, Projection),
        next: RowNorm,
    ) -> Stream {
        assert_eq!(next.weight.dims()[0], weight.dims()[0], "project_onto: length of the next norm");
        let inputs = adding(Some(residual), x.into(), weight, projection);
        let (rows, prepared) = Dispatch::project_onto(inputs, next.weight.clone().into_dispatch());
        let prepared = match prepared {
            PreparedNorm::Given(scaled, squares) => {
                Some((Tensor::from_dispatch(scaled), Tensor::from_dispatch(squares)))
            }
            PreparedNorm::Absent => None,
        };
        Stream { rows: Tensor::from_dispatch(rows), prepared }
    }

    fn adding(
        residual: Option<Tensor<2>>,
        x: Stream,
        weight: &Part,
        projection: Projection,
    ) -> ProjectionInputs<Dispatch> {
        if let Some(residual) = &residual {
            assert_eq!(residual.dims(), [x.rows.dims()[0], weight.dims()[0]], "project: residual shape");
        }
        ProjectionInputs { residual: Optional::of(residual), ..inputs(x, weight, projection) }
    }

    pub(crate) fn inputs(x: Stream, weight: &Part, projection: Projection) -> ProjectionInputs<Dispatch> {
        let Stream { rows: x, prepared } = x;
        let ([_, columns], [outputs, inputs]) = (x.dims(), weight.dims());
        assert_eq!(columns, inputs, "project: input length");
        assert!(projection.bias.is_none_or(|bias| bias.dims()[0] == outputs), "project: bias length");
        let norm = projection.norm;
        assert!(norm.is_none_or(|norm| norm.weight.dims()[0] == inputs), "project: length of the norm");
        ProjectionInputs {
            x: x.into_dispatch(),
            norm_weight: Optional::of(norm.map(|norm| norm.weight.clone())),
            norm_bias: Optional::of(norm.and_then(|norm| norm.bias.cloned())),
            norm_eps: norm.map_or(0.0, |norm| norm.eps),
            prepared: prepared.map_or(PreparedNorm::Absent, |(scaled, squares)| {
                PreparedNorm::Given(scaled.into_dispatch(), squares.into_dispatch())
            }),
            weight: tensors(weight),
            bias: Optional::of(projection.bias.cloned()),
            residual: Optional::Absent,
            activated: Activated::Not,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Seeded, assert_close, for_each_device, moved, reference_device};
    use crate::{Backend, Codes, Packing, Scales, backend_of, reference};

    #[test]
    fn projections_equal_the_operations_one_after_the_other() {
        for_each_device(|device| {
            let mut seeded = Seeded::new(40);
            let host = reference_device(device);
            for (rows, inputs, outputs) in [(1, 64, 32), (3, 33, 10), (17, 96, 130)] {
                let x: Tensor<2> = seeded.tensor([rows, inputs], &host);
                let residual: Tensor<2> = seeded.tensor([rows, outputs], &host);
                let values: Tensor<2> = seeded.tensor([outputs, inputs], &host);
                let [scale, shift] = [0; 2].map(|_| seeded.tensor([inputs], &host));
                let bias = seeded.tensor([outputs], &host);

                let normed = reference::layer_norm(x.clone(), &scale, &shift, 1e-5);
                let product = reference::linear(normed, &Weight::dense(values.clone()), Some(&bias));
                let kind = Activation::GeluTanh;
                let activated = reference::activation(product.clone(), kind);
                let half = outputs / 2;
                let gated = activated.clone().narrow(1, 0, half) * product.clone().narrow(1, half, half);

                let values = moved(&values, device);
                let rows_of = |first, count| values.clone().narrow(0, first, count);
                let parts = Weight::join([rows_of(0, 3), rows_of(3, outputs - 3)].map(Weight::dense).into());
                let [x, residual_there] = [&x, &residual].map(|tensor| moved(tensor, device));
                let [scale, shift, bias] = [&scale, &shift, &bias].map(|tensor| moved(tensor, device));
                let norm = Some(RowNorm { weight: &scale, bias: Some(&shift), eps: 1e-5 });
                for weight in [Weight::dense(values.clone()), parts] {
                    let projection = Projection { norm, weight: &weight, bias: Some(&bias) };
                    let got = |then| project(x.clone(), projection, then);
                    assert_close(got(Then::Keep), product.clone(), 2e-5);
                    let sums = product.clone() + residual.clone();
                    assert_close(got(Then::AddTo(residual_there.clone())), sums.clone(), 2e-5);
                    // The next norm is of as many columns as there are outputs.
                    let next = RowNorm { weight: &bias, bias: None, eps: 1e-5 };
                    let stream = project_onto(residual_there.clone(), x.clone(), projection, Some(next));
                    assert_close(stream.into_rows(), sums, 2e-5);
                    assert_close(got(Then::Activate(kind)), activated.clone(), 2e-5);
                    assert_close(got(Then::Gate(kind)), gated.clone(), 2e-5);
                }
            }
        });
    }

    #[test]
    fn few_rows_have_the_bits_of_the_operations_one_after_the_other() {
        for_each_device(|device| {
            if backend_of(device) != Backend::Wgpu {
                return; // elsewhere they are those very operations, or claimed to be close only
            }
            let mut seeded = Seeded::new(42);
            for (rows, inputs, outputs) in [(1, 576, 96), (3, 1536, 10), (8, 576, 18), (5, 224, 12), (2, 2048, 6)] {
                let x: Tensor<2> = seeded.tensor([rows, inputs], device);
                let [scale, bias] = [inputs, outputs].map(|length| seeded.tensor([length], device));
                let packing = Packing { codes: Codes::FourBits, scales: Scales::Halves };
                let packed = seeded.packed([outputs, inputs / 32 * 32], (device, packing));
                for weight in [Weight::dense(seeded.tensor([outputs, inputs], device)), packed] {
                    let norm = RowNorm { weight: &scale, bias: None, eps: 1e-5 };
                    let projection = Projection { norm: Some(norm), weight: &weight, bias: Some(&bias) };
                    let product = linear(norm.of(x.clone()), &weight, Some(&bias));
                    let got = |then| project(x.clone(), projection, then);
                    assert_close(got(Then::Keep), product.clone(), 0.0);
                    let (plain, gate) = (Activation::GeluTanh, Activation::Silu);
                    assert_close(got(Then::Activate(plain)), activation(product.clone(), plain), 0.0);
                    assert_close(got(Then::Gate(gate)), gated_activation(product, gate), 0.0);
                }
            }
        });
    }
}

use super::*;

/// The promise behind every number the hub reports: full-scale updates of all hospitals neither wrap nor err by more
/// than the stated bound.
#[test]
fn extreme_updates_do_not_wrap_and_stay_within_the_bound() {
    for n in [1usize, 3, 8, 32, 200, 255] {
        let params = RingParams::new(n, 10.0).unwrap();
        for value in [10.0f32, -10.0, 3.3, -1e-7, 0.0] {
            let mut sum = vec![0u32; 1];
            for _ in 0..n {
                let mut q = [0u32];
                assert_eq!(params.encode(Weight::EQUAL, &[value], &mut q).unwrap(), 0);
                sum[0] = sum[0].wrapping_add(q[0]);
            }
            let mut out = [0f64];
            params.decode_sum(&sum, &mut out).unwrap();
            let exact = n as f64 * f64::from(value);
            assert!((out[0] - exact).abs() <= params.sum_error_bound(n), "n={n} value={value} got {}", out[0]);
        }
    }
}

#[test]
fn weighted_mean_is_within_its_bound() {
    let params = RingParams::new(4, 2.0).unwrap();
    let weights = [3u32, WEIGHT_ONE / 3, WEIGHT_ONE, 77_777].map(|u| Weight::from_units(u).unwrap());
    let updates: [f32; 4] = [1.5, -0.25, 1.999, -2.0];
    let (mut sum, mut total, mut exact) = ([0u32], 0u32, 0.0);
    for (w, u) in weights.iter().zip(updates) {
        let mut q = [0];
        params.encode(*w, &[u], &mut q).unwrap();
        sum[0] = sum[0].wrapping_add(q[0]);
        total += w.units();
        exact += w.as_f64() * f64::from(u);
    }
    let weight_sum = params.decode_weights(total, 4).unwrap();
    let mut mean = [0f32];
    params.decode_mean(&sum, weight_sum, &mut mean).unwrap();
    let exact = exact / weight_sum.as_f64();
    let bound = params.mean_error_bound(4, u64::from(total)) + f64::from(f32::EPSILON) * exact.abs();
    assert!((f64::from(mean[0]) - exact).abs() <= bound);
}

/// A diverged training must not poison everyone's sum.
#[test]
fn nan_and_infinity_are_refused_and_located() {
    let params = RingParams::new(3, 1.0).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut update = vec![0.1f32; 3000];
        update[2500] = bad;
        let mut out = vec![7u32; 3000];
        let error = params.encode(Weight::EQUAL, &update, &mut out).unwrap_err();
        assert!(matches!(error, RingError::NotFinite { index: 2500, .. }), "{error}");
        assert!(out.iter().all(|q| *q == 0), "nothing of a refused update may be left behind");
    }
}

#[test]
fn coordinates_beyond_the_clip_are_clamped_and_counted() {
    let params = RingParams::new(2, 1.0).unwrap();
    let mut out = [0u32; 3];
    assert_eq!(params.encode(Weight::EQUAL, &[1.5, -3.0, 0.5], &mut out).unwrap(), 2);
    assert_eq!([out[0] as i32, out[1] as i32], [params.max() as i32, -(params.max() as i32)]);
}

/// Other implementations must get the same integers: rounding is to nearest, ties to even.
#[test]
fn rounding_is_to_even() {
    // n = 1 and C = M make S exactly 1.
    let params = RingParams::new(1, f64::from(i32::MAX)).unwrap();
    let mut out = [0u32; 4];
    params.encode(Weight::EQUAL, &[0.5, 1.5, -0.5, -2.5], &mut out).unwrap();
    assert_eq!(out.map(|q| q as i32), [0, 2, 0, -2]);
}

#[test]
fn head_round_trip_and_bounds() {
    let params = RingParams::new(5, 10.0).unwrap();
    let kinds = [Statistic::Count { max: 100_000 }, Statistic::Real { bound: 1000.0 }];
    let mut sum = vec![0u32; 16];
    for _ in 0..5 {
        let mut head = vec![0u32; 16];
        encode_head(&params, Weight::EQUAL, &[(kinds[0], 99_999.0), (kinds[1], -999.25)], &mut head).unwrap();
        for (s, q) in sum.iter_mut().zip(head) {
            *s = s.wrapping_add(q);
        }
    }
    let decoded = decode_statistics(&params, &kinds, &sum).unwrap();
    assert_eq!(decoded[0], 5.0 * 99_999.0);
    assert!((decoded[1] + 5.0 * 999.25).abs() < 5.0 * 1000.0 / f64::from(params.max()));
    let mut head = vec![0u32; 16];
    for (kind, value) in [(kinds[0], -1.0), (kinds[0], 100_001.0), (kinds[1], 1000.5), (kinds[1], f64::NAN)] {
        let error = encode_head(&params, Weight::EQUAL, &[(kind, value)], &mut head).unwrap_err();
        assert!(matches!(error, RingError::Statistic { index: 0, .. }), "{error}");
    }
}

#[test]
fn impossible_weight_sums_are_refused() {
    let params = RingParams::new(3, 1.0).unwrap();
    assert!(params.decode_weights(3 * WEIGHT_ONE, 3).is_ok());
    for units in [0, 2, 3 * WEIGHT_ONE + 1, u32::MAX] {
        assert!(matches!(params.decode_weights(units, 3), Err(RingError::WeightSum { .. })), "{units}");
    }
}

#[test]
fn parameters_name_what_is_wrong() {
    assert!(matches!(RingParams::new(0, 1.0), Err(RingError::RosterSize { n: 0 })));
    assert!(matches!(RingParams::new(256, 1.0), Err(RingError::RosterSize { n: 256 })));
    for clip in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(RingParams::new(3, clip).unwrap_err().to_string().contains("clip norm"));
    }
}

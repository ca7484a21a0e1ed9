use super::*;

fn set(terms: &[(Sign, u8)]) -> MaskSet {
    let mut set = MaskSet::new();
    terms.iter().for_each(|(sign, key)| set.push(*sign, &Secret::new([*key; 32])));
    set
}

/// One block at a time, as the definition reads.
fn reference(key: u8, offset: u64, n: usize) -> Vec<u32> {
    let cipher = Aes256::new(&[key; 32].into());
    (offset..offset + n as u64)
        .map(|e| {
            let mut block = Array::from(u128::from(e / 4).to_be_bytes());
            cipher.encrypt_block(&mut block);
            u32::from_le_bytes(block.as_slice().as_chunks::<4>().0[(e % 4) as usize])
        })
        .collect()
}

/// NIST SP 800-38A F.5.5 (CTR-AES256), with the counter that the vector begins at.
#[test]
fn keystream_is_nist_ctr() {
    let mut key = [0; 32];
    hex::decode_to_slice("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", &mut key).unwrap();
    let mut iv = [0; 16];
    hex::decode_to_slice("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", &mut iv).unwrap();
    let mut acc = [0u32; 8];
    apply_one(Sign::Plus, &Aes256::new(&key.into()), u128::from_be_bytes(iv), &mut acc, &[]);
    let stream: Vec<u8> = acc.iter().flat_map(|a| a.to_le_bytes()).collect();
    assert_eq!(hex::encode(stream), "0bdf7df1591716335e9a8b15c860c5025a6e699d536119065433863c8f657b94");
}

/// If ranges did not line up, an upload resumed after a kill would carry another mask than its peers subtract.
#[test]
fn any_range_and_any_number_of_threads_give_the_same_masks() {
    let masks = set(&[(Sign::Plus, 1), (Sign::Minus, 2), (Sign::Plus, 3)]);
    let n = 5 * TILE + 13;
    let expected: Vec<u32> = reference(1, 0, n)
        .into_iter()
        .zip(reference(2, 0, n))
        .zip(reference(3, 0, n))
        .map(|((a, b), c)| a.wrapping_sub(b).wrapping_add(c))
        .collect();
    for threads in [1, 2, 3, 7, 64] {
        let mut acc = vec![0; n];
        masks.apply_parallel(0, &mut acc, NonZeroUsize::new(threads).unwrap()).unwrap();
        assert_eq!(acc, expected, "{threads} threads");
    }
    for (from, to) in [(0, 16), (4, 1000), (16, TILE + 17), (TILE, 3 * TILE), (2 * TILE + 8, n)] {
        let mut acc = vec![0; to - from];
        masks.apply(from as u64, &mut acc).unwrap();
        assert_eq!(acc, expected[from..to], "{from}..{to}");
    }
}

/// The counter is 128 bits wide: far ranges do not repeat near ones.
#[test]
fn far_ranges_continue_the_stream() {
    let far = (1u64 << 34) - 8;
    let mut acc = vec![0; 16];
    set(&[(Sign::Plus, 9)]).apply(far, &mut acc).unwrap();
    assert_eq!(acc, reference(9, far, 16));
}

#[test]
fn opposite_signs_cancel_and_misaligned_offsets_are_refused() {
    let mut acc: Vec<u32> = (0..100).collect();
    set(&[(Sign::Plus, 1), (Sign::Plus.opposite(), 1)]).apply(64, &mut acc).unwrap();
    assert_eq!(acc, (0..100).collect::<Vec<_>>());
    assert_eq!(set(&[(Sign::Plus, 1)]).apply(2, &mut acc), Err(Misaligned { offset: 2 }));
    assert_eq!(acc[0], 0);
}

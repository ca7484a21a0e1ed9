//! For each reader, input by input: what it says. A steward who reads "no column case" where that column stands, or "7680
//! voxels are NaN" of a sound scan, looks for the fault in the wrong place.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use consilium_imaging::ScanError;
use consilium_imaging::dataset::{Dataset, Split};
use consilium_imaging::msd::{CaseTable, labelled_cases};
use consilium_imaging::nifti_file::{read_grid, read_mask, read_volume};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tempfile::TempDir;

type Names<'a> = &'a [&'a str];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A sound scan of 3 × 2 × 2 int16 voxels, as bytes.
fn sound() -> Vec<u8> {
    let mut bytes = vec![0_u8; 352];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &348_i32.to_le_bytes());
    for (at, side) in [(40, 3_i16), (42, 3), (44, 2), (46, 2), (70, 4), (72, 16), (252, 1), (254, 1)] {
        put(at, &side.to_le_bytes());
    }
    for (at, value) in
        [(76, 1.0_f32), (80, 1.0), (84, 1.0), (88, 1.0), (108, 352.0), (280, 1.0), (300, 1.0), (320, 1.0)]
    {
        put(at, &value.to_le_bytes());
    }
    put(344, b"n+1\0");
    bytes.extend((0..12_i16).flat_map(i16::to_le_bytes));
    bytes
}

fn with(at: usize, part: &[u8]) -> Vec<u8> {
    let mut bytes = sound();
    bytes[at..at + part.len()].copy_from_slice(part);
    bytes
}

fn floats(at: usize, values: &[f32]) -> Vec<u8> {
    with(at, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

fn shorts(at: usize, values: &[i16]) -> Vec<u8> {
    with(at, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

fn assert_says(name: &str, result: Result<(), ScanError>, reason: &str, parts: &[&str]) {
    let error = result.map_or_else(|e| e, |()| panic!("{name}: nothing was said"));
    let message = error.to_string();
    assert_eq!(error.reason(), reason, "{name}: {message}");
    for part in parts {
        assert!(message.contains(part), "{name}: {message:?} lacks {part:?}");
    }
}

fn nifti2() -> Vec<u8> {
    let mut bytes = vec![0_u8; 544 + 24];
    bytes[..4].copy_from_slice(&540_i32.to_le_bytes());
    bytes[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
    bytes
}

fn dicom() -> Vec<u8> {
    let mut bytes = vec![0_u8; 1000];
    bytes[128..132].copy_from_slice(b"DICM");
    bytes
}

#[test]
fn scans() {
    let big_endian_axes = {
        let mut bytes = with(40, &9_i16.to_le_bytes());
        bytes[42] = 3;
        bytes
    };
    let long: Vec<u8> = [sound(), vec![0; 10]].concat();
    let cases: Vec<(&str, Vec<u8>, &str, &[&str])> = vec![
        ("NIfTI-2", nifti2(), "NotNifti", &["NIfTI-2", "540 bytes", "convert the scan to NIfTI-1"]),
        ("NIfTI-2, compressed", gzip(&nifti2()), "NotNifti", &["NIfTI-2"]),
        ("a .hdr", with(344, b"ni1\0"), "NotNifti", &[".hdr/.img pair"]),
        ("Analyze", with(344, b"\0\0\0\0"), "NotNifti", &["Analyze 7.5"]),
        ("DICOM", dicom(), "NotNifti", &["DICOM"]),
        ("twice compressed", gzip(&gzip(&sound())), "NotNifti", &["compressed twice"]),
        ("LFS", b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "NotNifti", &["Git LFS", "git lfs pull"]),
        ("a web page", b"<!DOCTYPE html><html></html>".to_vec(), "NotNifti", &["web page"]),
        ("a letter", "Dear colleague, ".repeat(40).into_bytes(), "NotNifti", &["header of 348 bytes"]),
        ("empty file", Vec::new(), "Truncated", &["0 bytes", "at least a header"]),
        ("cut voxels", sound()[..370].to_vec(), "Truncated", &["370 bytes", "376", "[3, 2, 2]"]),
        ("more voxels", long, "Truncated", &["more bytes"]),
        ("nine axes", big_endian_axes, "BadGeometry", &["dim[0] is 9", "from 1 to 7"]),
        ("two axes", shorts(40, &[2]), "NotThreeDimensional", &["[3, 2]", "three"]),
        ("a negative side", shorts(42, &[-5]), "NotThreeDimensional", &["[-5, 2, 2]"]),
        ("a time series", shorts(40, &[4, 3, 2, 2, 7]), "NotThreeDimensional", &["[3, 2, 2, 7]", "one file each"]),
        ("complex", shorts(70, &[32]), "WrongDataType", &["Complex64", "float32"]),
        ("RGB", shorts(70, &[128]), "WrongDataType", &["Rgb24"]),
        ("half a code", shorts(70, &[9999]), "WrongDataType", &["9999"]),
        ("bitpix", shorts(72, &[8]), "BadGeometry", &["bitpix", "8 beside"]),
        ("no spacing", floats(80, &[0.0]), "BadGeometry", &["pixdim", "above 0"]),
        ("micrometres", with(123, &[3]), "BadGeometry", &["xyzt_units is 3", "mm"]),
        ("voxels in the header", floats(108, &[100.0]), "BadGeometry", &["vox_offset is 100.0"]),
        ("a plane", floats(280, &[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), "BadGeometry", &["srow_x", "singular", "sform"]),
        ("an axis of no length", floats(320, &[0.0]), "BadGeometry", &["srow_x", "singular"]),
        ("NaN in the sform", floats(280, &[f32::NAN]), "BadGeometry", &["srow_x", "finite"]),
        (
            "a mirror between sform and qform",
            floats(280, &[-1.0]),
            "BadGeometry",
            &["LAS by the sform and RAS by the qform", "code to 0"],
        ),
        ("two spacings", floats(80, &[2.0]), "BadGeometry", &["pixdim", "same spacing", "srow_x"]),
        ("a huge slope", floats(112, &[3e38, 1.0]), "NotFinite", &["scl_slope", "x=2 y=0 z=0"]),
        ("nothing in it", floats(112, &[1e-45, 3.0]), "Empty", &["all voxels are 3", "scl_slope"]),
    ];
    let dir = TempDir::new().unwrap();
    for (name, bytes, reason, parts) in cases {
        let file = dir.path().join("odd.nii");
        fs::write(&file, bytes).unwrap();
        let parts = [&["odd.nii"], parts].concat();
        assert_says(name, read_volume(&file).map(drop), reason, &parts);
    }
}

/// A mask that some tool has scaled: "map the labels" would send people to the labels.
#[test]
fn a_mask_that_is_scaled_says_so() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("odd.nii");
    fs::write(&file, floats(112, &[0.5, 0.0])).unwrap();
    assert_says("half", read_mask(&file, 200).map(drop), "LabelOutsideClasses", &["odd.nii", "scl_slope 0.5"]);
}

/// As NIfTI's C library reads it: a slope that is 0 or no number says that there is no scaling. A sound scan was refused
/// with "voxels are NaN", and a sound mask with "label NaN".
#[test]
fn a_slope_that_is_no_number_scales_nothing() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("s.nii");
    let expected: Vec<f32> = (0..12).map(|v| v as f32).collect();
    for (slope, intercept) in [(0.0, 5.0), (f32::NAN, f32::NAN), (f32::INFINITY, 1.0), (1.0, f32::NAN), (1.0, 0.0)] {
        fs::write(&file, floats(112, &[slope, intercept])).unwrap();
        assert_eq!(read_volume(&file).unwrap().voxels, expected, "{slope} {intercept}");
        assert_eq!(read_mask(&file, 12).unwrap().labels.len(), 12);
    }
    fs::write(&file, floats(112, &[2.0, -1.0])).unwrap();
    assert_eq!(read_volume(&file).unwrap().voxels[..3], [-1.0, 1.0, 3.0]);
}

/// A header of 352 bytes that announces 2^30 voxels made every other scan of its folder be padded to 1024³ first.
#[test]
fn a_header_that_promises_what_the_file_cannot_hold_costs_nothing() {
    let dir = TempDir::new().unwrap();
    let header = &shorts(42, &[1024, 1024, 1024])[..352];
    for (name, bytes) in [("bomb.nii", header.to_vec()), ("bomb.nii.gz", gzip(header))] {
        let file = dir.path().join(name);
        fs::write(&file, bytes).unwrap();
        for result in [read_grid(&file).map(drop), read_volume(&file).map(drop), read_mask(&file, 3).map(drop)] {
            assert_says(name, result, "Truncated", &[name, "room for", "[1024, 1024, 1024]"]);
        }
    }
}

#[test]
fn tables_as_spreadsheets_write_them_are_read() {
    let tables: [(&str, &[u8]); 9] = [
        ("plain", b"case,subject,regime\na,9,F\nb,1,\n"),
        ("a byte-order mark and CRLF", b"\xef\xbb\xbfcase,subject,regime\r\na,9,F\r\nb,1,\r\n"),
        ("quotes", b"\"case\",\"subject\",\"regime\"\n\"a\",\"9\",\"F\"\n\"b\",\"1\",\"\"\n"),
        ("semicolons", b"case;subject;regime\na;9;F\nb;1;\n"),
        ("tabs", b"case\tsubject\tregime\na\t9\tF\nb\t1\t\n"),
        ("a spreadsheet's hint", b"sep=;\r\ncase;subject;regime\r\na;9;F\r\nb;1;\r\n"),
        ("capitals, spaces and blank lines", b"Case, Subject ,REGIME\n\na, 9,F\nb,1,\n\n"),
        (
            "file names for cases, columns in another order",
            b"regime,subject_guess,mean,case\nF,9,3.5,a.nii.gz\n,1,2,b.nii\n",
        ),
        ("a comma in quotes", b"case,subject,regime,note\na,9,F,\"old, and thin\"\nb,1,,\n"),
    ];
    for (name, bytes) in tables {
        let table = CaseTable::parse(Path::new("cases.csv"), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((table.subject("a").unwrap(), table.regime("a")), ("9".into(), Some("F".into())), "{name}");
        assert_eq!((table.subject("b").unwrap(), table.regime("b")), ("1".into(), None), "{name}");
    }
}

#[test]
fn tables() {
    let cases: [(&str, &[u8], &[&str]); 12] = [
        ("nothing", b"", &["line 1", "empty"]),
        ("no case", b"id,subject\na,1\n", &["line 1", "no column case", "id | subject"]),
        ("no subject", b"case;person\na;1\n", &["no column subject", "case | person"]),
        ("two columns of a name", b"case,subject,Case\na,1,b\n", &["column case stands there twice"]),
        ("a case twice", b"case,subject\na,1\n\na,2\n", &["line 4", "case a", "twice, first in line 2"]),
        ("a short row", b"case,subject\na,1\nb\n", &["line 3", "1 fields, the header has 2"]),
        ("a comma outside quotes", b"case,subject\na,Doe, Jane\n", &["line 2", "3 fields", "in quotes"]),
        ("nobody", b"case,subject\na,\n", &["line 2", "must not be empty"]),
        ("Latin-1", b"case,subject\na,J\xfcrgen\n", &["line 2", "0xfc", "UTF-8"]),
        ("UTF-16", b"\xff\xfec\0a\0s\0e\0", &["UTF-16", "UTF-8"]),
        ("UTF-16 without a mark", b"c\0a\0s\0e\0,\0", &["UTF-16", "UTF-8"]),
        ("a workbook", b"PK\x03\x04....", &["spreadsheet", "CSV"]),
    ];
    for (name, bytes, parts) in cases {
        let parts = [&["cases.csv"], parts].concat();
        assert_says(name, CaseTable::parse(Path::new("cases.csv"), bytes).map(drop), "BadTable", &parts);
    }
}

#[test]
fn descriptions_of_data_sets() {
    let read: [(&str, &str); 3] = [
        (
            "Decathlon",
            r#"{"name": "H", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
                "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], "test": ["./imagesTs/b.nii.gz"]}"#,
        ),
        (
            "nnU-Net v2",
            r#"{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": "2"},
                "numTraining": 1, "file_ending": ".nii.gz"}"#,
        ),
        (
            "with a byte-order mark",
            "\u{feff}{\"modality\": [\"CT\"], \"labels\": {\"0\": \"background\", \"2\": \"Posterior\"}}",
        ),
    ];
    for (name, text) in read {
        let dataset =
            Dataset::parse(Path::new("dataset.json"), text.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(dataset.labels()[&2], "Posterior", "{name}");
        dataset.check_classes(3).unwrap();
        assert_says(name, dataset.check_classes(2), "BadDataset", &["label 2 (Posterior)", "2 classes"]);
    }
    let nnunet =
        |more: &str| format!(r#"{{"channel_names": {{"0": "MRI"}}, "labels": {{"background": 0, "a": 1}}{more}}}"#);
    let refused: Vec<(&str, String, &[&str])> = vec![
        ("no JSON", "{,".into(), &["not JSON"]),
        ("a list", "[]".into(), &["not a JSON object"]),
        ("neither", r#"{"labels": {"0": "background"}}"#.into(), &["modality", "channel_names"]),
        (
            "two channels",
            r#"{"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "b"}}"#.into(),
            &["2 channels", "FLAIR", "T1"],
        ),
        ("pictures", nnunet(r#", "file_ending": ".png""#), &["file_ending is .png", "convert"]),
        ("paths", nnunet(r#", "dataset": {}"#), &["dataset lists files", "imagesTr"]),
        ("regions", nnunet("").replace(r#""a": 1"#, r#""a": [1, 2]"#), &["label a is a region", "[1,2]"]),
        ("ignore", nnunet("").replace(r#""a": 1"#, r#""ignore": 1"#), &["ignore label"]),
        ("one number twice", nnunet("").replace(r#""a": 1"#, r#""a": 0"#), &["label 0 has two names"]),
        ("no background", nnunet("").replace(r#""background": 0"#, r#""b": 2"#), &["label 0, the background"]),
        ("half a label", nnunet("").replace(r#""a": 1"#, r#""a": 1.5"#), &["label a: 1.5", "whole number"]),
        ("no labels", r#"{"channel_names": {}}"#.into(), &["labels is missing"]),
        (
            "a pair of two names",
            r#"{"modality": {}, "labels": {"0": "b"}, "training": [{"image": "x/a.nii", "label": "x/b.nii"}]}"#.into(),
            &["image a with label b", "same name"],
        ),
        ("another format", r#"{"modality": {}, "labels": {"0": "b"}, "training": ["a.nrrd"]}"#.into(), &["a.nrrd"]),
    ];
    for (name, text, parts) in refused {
        let parts = [&["dataset.json"], parts].concat();
        let result = Dataset::parse(Path::new("dataset.json"), text.as_bytes()).map(drop);
        assert_says(name, result, "BadDataset", &parts);
    }
}

/// A folder with images and masks of these names; what they hold is not looked at.
fn folder(images: &[&str], masks: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (inner, names) in [("imagesTr", images), ("labelsTr", masks)] {
        fs::create_dir(dir.path().join(inner)).unwrap();
        for name in names {
            fs::write(dir.path().join(inner).join(name), sound()).unwrap();
        }
    }
    dir
}

/// Every file in a folder is used, refused by name, or named in a notice: a scan that is left out silently is missed by
/// nobody, and the figure is of other patients than people think.
#[test]
fn folders_leave_nothing_out() {
    let found = |dir: &TempDir| {
        let found = labelled_cases(dir.path()).unwrap();
        found.cases.iter().map(|case| case.id.clone()).collect::<Vec<_>>()
    };
    // Capitals, and a mask that is compressed where its image is not.
    let dir = folder(&["a.NII.GZ", "b.nii", "c.Nii"], &["a.NII.GZ", "b.nii.gz", "c.nii"]);
    assert_eq!(found(&dir), ["a", "b", "c"]);
    let dir = folder(&["a.nii", "._a.nii", "notes.txt", "a.nrrd"], &["a.nii", "a.json"]);
    assert_eq!(found(&dir), ["a"]);
    let notices = labelled_cases(dir.path()).unwrap().notices;
    assert!(
        notices.len() == 2 && notices[0].contains("a.nrrd, notes.txt") && notices[1].contains("a.json"),
        "{notices:?}"
    );

    let refused: [(&str, Names, Names, &str, Names); 4] = [
        (
            "two images",
            &["a.nii", "a.nii.gz"],
            &["a.nii"],
            "TwoFiles",
            &["imagesTr/a.nii ", "imagesTr/a.nii.gz", "case a"],
        ),
        ("two masks", &["a.nii"], &["a.nii", "a.NII"], "TwoFiles", &["labelsTr/a.NII", "labelsTr/a.nii"]),
        ("no mask", &["a.nii", "b.nii"], &["a.nii"], "MissingMask", &["imagesTr/b.nii", "labelsTr/b"]),
        ("no image", &["a.nii"], &["a.nii", "b.nii"], "MissingImage", &["labelsTr/b.nii", "imagesTr"]),
    ];
    for (name, images, masks, reason, parts) in refused {
        assert_says(name, labelled_cases(folder(images, masks).path()).map(drop), reason, parts);
    }
}

/// A table or a list that visibly stands there and is not read: each scan becomes a person of its own, and one patient
/// stands on both sides of the split.
#[test]
fn tables_and_lists_are_found_by_any_name_that_people_see_as_theirs() {
    let dir = folder(&["a.nii"], &["a.nii"]);
    fs::write(dir.path().join("Subjects.CSV"), "case,subject\na,Jane\n").unwrap();
    assert_eq!(labelled_cases(dir.path()).unwrap().cases[0].subject, "Jane");
    fs::write(dir.path().join("subjects.csv"), "case,subject\na,Jane\n").unwrap();
    let both = labelled_cases(dir.path()).map(drop);
    assert_says("two tables", both, "BadFolder", &["Subjects.CSV", "subjects.csv", "keep one"]);
    let dir = folder(&["a.nii"], &["a.nii"]);
    fs::write(dir.path().join("DATASET.json"), "{}").unwrap();
    assert_says("a list", labelled_cases(dir.path()).map(drop), "BadDataset", &["DATASET.json", "modality"]);
    // As git-annex and datalad leave what was not fetched.
    let dir = folder(&["a.nii"], &["a.nii"]);
    std::os::unix::fs::symlink("../annex/objects/x", dir.path().join("subjects.csv")).unwrap();
    assert_says("a link that leads nowhere", labelled_cases(dir.path()).map(drop), "Unreadable", &["subjects.csv"]);
    // Half of a scan that a copy was cut in.
    let dir = folder(&["a.nii", ".b.nii.gz.aB3x"], &["a.nii"]);
    assert!(labelled_cases(dir.path()).unwrap().notices[0].contains(".b.nii.gz.aB3x"));
}

#[test]
fn names_that_are_no_text_are_refused() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = folder(&["a.nii"], &["a.nii"]);
    let name = OsStr::from_bytes(b"M\xfcller.nii.gz");
    fs::write(dir.path().join("imagesTr").join(name), sound()).unwrap();
    assert_says(
        "Latin-1",
        labelled_cases(dir.path()).map(drop),
        "BadName",
        &["imagesTr", "ller.nii.gz", "UTF-8", "rename"],
    );
}

#[test]
fn folders_with_a_description_are_read_by_it() {
    let describe = |dir: &TempDir, text: &str| fs::write(dir.path().join("dataset.json"), text).unwrap();
    let nnunet = r#"{"channel_names": {"0": "MRI"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}"#;
    let dir = folder(&["a_0000.nii", "b_0000.nii"], &["a.nii", "b.nii"]);
    describe(&dir, nnunet);
    let cases = labelled_cases(dir.path()).unwrap().cases;
    assert_eq!(cases.iter().map(|case| case.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(cases[0].mask.as_deref(), Some(dir.path().join("labelsTr/a.nii").as_path()));
    let dir = folder(&["a_0000.nii", "a_0001.nii"], &["a.nii"]);
    describe(&dir, nnunet);
    assert_says("a second channel", labelled_cases(dir.path()).map(drop), "BadDataset", &["a_0001.nii", "_0000"]);

    let listing = r#"{"modality": {"0": "MRI"}, "labels": {"0": "b"}, "training": [
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, {"image": "./imagesTr/c.nii.gz"}]}"#;
    let dir = folder(&["a.nii", "b.nii"], &["a.nii", "b.nii"]);
    describe(&dir, listing);
    let parts = ["lists case c", "does not list case b", "dataset.json"];
    assert_says("another list", labelled_cases(dir.path()).map(drop), "SeveralFiles", &parts);

    assert_eq!(Split::of_folder(dir.path()).unwrap(), None);
    fs::write(
        dir.path().join("splits_final.json"),
        r#"[{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]"#,
    )
    .unwrap();
    let split = Split::of_folder(dir.path()).unwrap().unwrap();
    assert!(split.train.contains("a") && split.held_back.contains("b") && split.train.len() == 1);
    fs::write(dir.path().join("splits_final.json"), "{}").unwrap();
    let result = Split::of_folder(dir.path()).map(drop);
    assert_says("no folds", result, "BadDataset", &["splits_final.json", "list of folds"]);
}

fn read_all(bytes: &[u8]) -> [Result<(), ScanError>; 2] {
    let dir = TempDir::new().unwrap();
    let file: PathBuf = dir.path().join("x.nii");
    fs::write(&file, bytes).unwrap();
    [read_volume(&file).map(drop), read_mask(&file, 3).map(drop)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever stands in a header, there is an answer and no panic, and never more voxels than the file holds.
    #[test]
    fn any_header_gets_an_answer(changes in prop::collection::vec((0_usize..352, any::<u8>()), 0..12), cut in 0_usize..400) {
        let mut bytes = sound();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(cut.max(4));
        for packed in [bytes.clone(), gzip(&bytes)] {
            for result in read_all(&packed) {
                prop_assert!(result.map_or_else(|e| !e.to_string().is_empty(), |()| bytes.len() == 376));
            }
        }
    }

    /// Whatever stands in a table, there is an answer, and a row that is read has a case and a person.
    #[test]
    fn any_table_gets_an_answer(text in "[a-c,;\t\"\r\n =\u{feff}]{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        for table in [text.clone().into_bytes(), format!("case,subject\n{text}").into_bytes(), bytes.clone()] {
            if let Ok(table) = CaseTable::parse(Path::new("t.csv"), &table) {
                prop_assert!(table.knows_persons());
            }
            let _ = Dataset::parse(Path::new("dataset.json"), &table);
        }
    }
}

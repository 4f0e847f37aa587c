//! C interface to the Hugging Face tokenizers crate; tokenizers_c.h is its declaration and its manual.
//!
//! No panic crosses the boundary: it becomes an error of the call. Strings and ids handed out are freed with
//! the function of their kind.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BpeTrainerBuilder, BPE};
use tokenizers::models::TrainerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

type Error = Box<dyn std::error::Error + Send + Sync>;

pub struct AlmostTokenizer(Tokenizer);

/// Bytes owned by this library; `data` is null where there are none.
#[repr(C)]
pub struct AlmostBytes {
    data: *mut u8,
    size: usize,
}

#[repr(C)]
pub struct AlmostIds {
    data: *mut u32,
    size: usize,
}

/// Borrowed bytes of the caller.
#[repr(C)]
pub struct AlmostSlice {
    data: *const u8,
    size: usize,
}

impl AlmostBytes {
    const NONE: AlmostBytes = AlmostBytes {
        data: std::ptr::null_mut(),
        size: 0,
    };

    fn from_string(text: String) -> AlmostBytes {
        let boxed = text.into_bytes().into_boxed_slice();
        let size = boxed.len();
        AlmostBytes {
            data: Box::into_raw(boxed) as *mut u8,
            size,
        }
    }
}

unsafe fn borrow<'a>(data: *const u8, size: usize) -> &'a [u8] {
    if size == 0 {
        &[]
    } else {
        slice::from_raw_parts(data, size)
    }
}

unsafe fn text<'a>(data: *const u8, size: usize) -> std::borrow::Cow<'a, str> {
    String::from_utf8_lossy(borrow(data, size))
}

/// Runs `body`; an error or a panic goes into `*error` and gives None.
unsafe fn guard<T>(error: *mut AlmostBytes, body: impl FnOnce() -> Result<T, Error>) -> Option<T> {
    *error = AlmostBytes::NONE;
    let message = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(e)) => e.to_string(),
        Err(panic) => panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic")
            .to_string(),
    };
    *error = AlmostBytes::from_string(message);
    None
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_parse(
    json: *const u8,
    size: usize,
    error: *mut AlmostBytes,
) -> *mut AlmostTokenizer {
    guard(error, || {
        let mut tokenizer = Tokenizer::from_bytes(borrow(json, size))?;
        // A file may ask for truncation or padding; as in transformers, that is the caller's to ask for.
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(Box::into_raw(Box::new(AlmostTokenizer(tokenizer))))
    })
    .unwrap_or(std::ptr::null_mut())
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_free(tokenizer: *mut AlmostTokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_encode(
    tokenizer: *const AlmostTokenizer,
    data: *const u8,
    size: usize,
    add_special_tokens: bool,
    ids: *mut AlmostIds,
    error: *mut AlmostBytes,
) -> bool {
    let encoded = guard(error, || {
        let encoding = (*tokenizer)
            .0
            .encode_fast(text(data, size), add_special_tokens)?;
        Ok(encoding.get_ids().to_vec().into_boxed_slice())
    });
    match encoded {
        Some(boxed) => {
            let size = boxed.len();
            *ids = AlmostIds {
                data: Box::into_raw(boxed) as *mut u32,
                size,
            };
            true
        }
        None => false,
    }
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_decode(
    tokenizer: *const AlmostTokenizer,
    ids: *const u32,
    size: usize,
    skip_special_tokens: bool,
    out: *mut AlmostBytes,
    error: *mut AlmostBytes,
) -> bool {
    let decoded = guard(error, || {
        let ids = if size == 0 {
            &[]
        } else {
            slice::from_raw_parts(ids, size)
        };
        (*tokenizer).0.decode(ids, skip_special_tokens)
    });
    match decoded {
        Some(text) => {
            *out = AlmostBytes::from_string(text);
            true
        }
        None => false,
    }
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_token_id(
    tokenizer: *const AlmostTokenizer,
    data: *const u8,
    size: usize,
) -> i64 {
    catch_unwind(AssertUnwindSafe(|| {
        (*tokenizer).0.token_to_id(&text(data, size))
    }))
    .ok()
    .flatten()
    .map_or(-1, i64::from)
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_vocab_size(tokenizer: *const AlmostTokenizer) -> usize {
    catch_unwind(AssertUnwindSafe(|| (*tokenizer).0.get_vocab_size(true))).unwrap_or(0)
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_train_bpe(
    texts: *const AlmostSlice,
    num_texts: usize,
    vocab_size: usize,
    end_of_text: AlmostSlice,
    json: *mut AlmostBytes,
    error: *mut AlmostBytes,
) -> bool {
    let trained = guard(error, || {
        let end_of_text = text(end_of_text.data, end_of_text.size).into_owned();
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
        tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
        let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(vocab_size)
            .special_tokens(vec![AddedToken::from(end_of_text.clone(), true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
            .into();
        let texts = if num_texts == 0 {
            &[]
        } else {
            slice::from_raw_parts(texts, num_texts)
        };
        let texts: Vec<_> = texts.iter().map(|t| text(t.data, t.size)).collect();
        tokenizer.train(&mut trainer, texts.iter())?;
        let id = tokenizer
            .token_to_id(&end_of_text)
            .ok_or("the end-of-text token got no id")?;
        // Pieces rather than a template string: the token may hold any character.
        let template = TemplateProcessing::builder()
            .try_single(vec![end_of_text.as_str(), "$A"])?
            .try_pair(vec![end_of_text.as_str(), "$A:0", "$B:1"])?
            .special_tokens(vec![(end_of_text.as_str(), id)])
            .build()?;
        tokenizer.with_post_processor(Some(template));
        tokenizer.to_string(true)
    });
    match trained {
        Some(text) => {
            *json = AlmostBytes::from_string(text);
            true
        }
        None => false,
    }
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_free_bytes(bytes: AlmostBytes) {
    if !bytes.data.is_null() {
        drop(Box::from_raw(slice::from_raw_parts_mut(
            bytes.data, bytes.size,
        )));
    }
}

#[no_mangle]
pub unsafe extern "C" fn almost_tokenizer_free_ids(ids: AlmostIds) {
    if !ids.data.is_null() {
        drop(Box::from_raw(slice::from_raw_parts_mut(ids.data, ids.size)));
    }
}

//! What binary content costs: a formula by class and size, since its base64 text is never what a model reads.
//!
//! The figures follow published prices of common models where there are any (images as OpenAI's tiles), and
//! are rough otherwise. Nothing is decoded: sizes come from the length of the base64 text.

use serde_json::{Map, Value};

/// Base64 text at least this long is taken for binary content wherever it stands.
const BLOB_CHARS_MIN: usize = 512;
/// In a part that is declared binary, a shorter one will do.
const DECLARED_BLOB_CHARS_MIN: usize = 32;

/// What an image costs whose size is unknown: one of 1024 x 1024 pixels.
const IMAGE_TOKENS: u32 = 765;
const IMAGE_BASE_TOKENS: u32 = 85;
const IMAGE_TILE_TOKENS: u32 = 170;
const IMAGE_TILE_PIXELS: f64 = 512.0;
const IMAGE_LONG_SIDE_MAX: f64 = 2048.0;
const IMAGE_SHORT_SIDE_MAX: f64 = 768.0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Image,
    Audio,
    Video,
    /// Text sent as a file.
    Text,
    /// PDF, office documents, archives, and what is unknown.
    Document,
}

impl Class {
    /// The class of a part that is declared binary by its `type`.
    fn of_kind(kind: &str) -> Option<Class> {
        match kind {
            "image" | "image_url" | "input_image" | "image-url" | "image-data" => Some(Class::Image),
            "audio" | "audio_url" | "input_audio" => Some(Class::Audio),
            "video" | "video_url" | "input_video" => Some(Class::Video),
            "file" | "input_file" | "document" | "media" | "file-url" | "file-data" => Some(Class::Document),
            _ => None,
        }
    }

    fn of_media_type(media_type: &str) -> Class {
        let (top, sub) = media_type.split_once('/').unwrap_or((media_type, ""));
        match top {
            "image" => Class::Image,
            "audio" => Class::Audio,
            "video" => Class::Video,
            "text" => Class::Text,
            _ if matches!(sub, "json" | "xml" | "yaml" | "toml" | "javascript") => Class::Text,
            _ => Class::Document,
        }
    }

    /// By the first bytes, of which the first base64 characters tell enough.
    fn of_base64(text: &str) -> Class {
        const IMAGES: [&str; 4] = ["iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR"];
        if IMAGES.iter().any(|magic| text.starts_with(magic)) { Class::Image } else { Class::Document }
    }

    /// Tokens of content of `bytes`, or of an unknown size.
    fn tokens(self, bytes: Option<u64>) -> u32 {
        let (bytes_per_token, unknown) = match self {
            Class::Image => return IMAGE_TOKENS,
            Class::Audio => (1_600, 600),
            Class::Video => (3_500, 3_000),
            Class::Text => (4, 1_500),
            Class::Document => (50, 1_500),
        };
        let tokens = bytes.map_or(unknown, |bytes| bytes.div_ceil(bytes_per_token).max(1));
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }
}

/// What a part costs whose `type` declares it binary; `None` for other parts.
pub(super) fn part_tokens(part: &Map<String, Value>) -> Option<u32> {
    let declared = Class::of_kind(part.get("type")?.as_str()?)?;
    let mut content = Content::default();
    part.iter().for_each(|(key, value)| content.look_at(key, value));
    let class = content.class.unwrap_or(declared);
    if class == Class::Image {
        return Some(content.image_tokens());
    }
    if content.bytes.is_none() && content.text_bytes > 0 {
        return Some(Class::Text.tokens(Some(content.text_bytes)));
    }
    Some(class.tokens(content.bytes))
}

/// What a string costs that is a base64 data URL or plain base64; `None` for text.
pub(super) fn string_tokens(text: &str) -> Option<u32> {
    if let Some((media_type, base64)) = data_url(text) {
        return Some(Class::of_media_type(media_type).tokens(Some(decoded_bytes(base64))));
    }
    let blob = text.len() >= BLOB_CHARS_MIN && is_base64(text) && is_mixed(text);
    blob.then(|| Class::of_base64(text).tokens(Some(decoded_bytes(text))))
}

/// What the members of a binary part tell, wherever vendors put them.
#[derive(Default)]
struct Content {
    class: Option<Class>,
    bytes: Option<u64>,
    text_bytes: u64,
    low_detail: bool,
    width: Option<f64>,
    height: Option<f64>,
}

impl Content {
    fn look_at(&mut self, key: &str, value: &Value) {
        match value {
            Value::String(text) => self.look_at_text(key, text),
            Value::Number(number) if key == "width" => self.width = number.as_f64(),
            Value::Number(number) if key == "height" => self.height = number.as_f64(),
            Value::Object(members) => members.iter().for_each(|(key, value)| self.look_at(key, value)),
            Value::Array(items) => items.iter().for_each(|item| self.look_at(key, item)),
            _ => {}
        }
    }

    fn look_at_text(&mut self, key: &str, text: &str) {
        if let Some((media_type, base64)) = data_url(text) {
            self.class = self.class.or(Some(Class::of_media_type(media_type)));
            self.bytes = Some(self.bytes.unwrap_or(0) + decoded_bytes(base64));
        } else if matches!(key, "media_type" | "mediaType" | "mime_type" | "mimeType") {
            self.class = Some(Class::of_media_type(text));
        } else if key == "detail" {
            self.low_detail = text == "low";
        } else if text.len() >= DECLARED_BLOB_CHARS_MIN && is_base64(text) {
            self.bytes = Some(self.bytes.unwrap_or(0) + decoded_bytes(text));
        } else if matches!(key, "data" | "text") {
            self.text_bytes += text.len() as u64;
        }
    }

    /// OpenAI's rule: fit the image into 2048 x 2048, then its short side into 768, and pay for tiles of 512.
    fn image_tokens(&self) -> u32 {
        if self.low_detail {
            return IMAGE_BASE_TOKENS;
        }
        let (Some(width), Some(height)) = (self.width, self.height) else { return IMAGE_TOKENS };
        let (short, long) = (width.min(height), width.max(height));
        if short < 1.0 {
            return IMAGE_TOKENS;
        }
        let scale = (IMAGE_LONG_SIDE_MAX / long).min(IMAGE_SHORT_SIDE_MAX / short).min(1.0);
        let tiles = |side: f64| (side * scale / IMAGE_TILE_PIXELS).ceil().max(1.0) as u32;
        IMAGE_BASE_TOKENS + IMAGE_TILE_TOKENS * tiles(short) * tiles(long)
    }
}

/// Media type and base64 text of a `data:` URL. Those without base64 are text.
fn data_url(text: &str) -> Option<(&str, &str)> {
    let scheme = text.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:"))?;
    let (head, base64) = text[scheme.len()..].split_once(',')?;
    let media_type = head.strip_suffix(";base64")?;
    Some((media_type.split(';').next().unwrap_or_default(), base64))
}

fn decoded_bytes(base64: &str) -> u64 {
    base64.trim_end_matches('=').len() as u64 * 3 / 4
}

/// Standard or URL-safe alphabet, lines allowed.
fn is_base64(text: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_' | b'=' | b'\r' | b'\n');
    text.bytes().all(allowed)
}

/// Bytes of any kind give letters of both cases and digits soon; a long hexadecimal number or word does not.
fn is_mixed(text: &str) -> bool {
    let any = |is: fn(&u8) -> bool| text.as_bytes().iter().any(is);
    any(u8::is_ascii_uppercase) && any(u8::is_ascii_lowercase) && any(u8::is_ascii_digit)
}

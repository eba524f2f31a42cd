//! Who is let in, and who finds whom.

use super::*;

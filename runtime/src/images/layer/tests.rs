//! Tests of whole conversions.

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{GRID, INK, OURS, drawn, ink};
use crate::error::Result;

/// Pixels of a bar's line, and of the bar in it.
const LINE: i32 = 34;
const BAR: i32 = 16;
/// Pixels round the bars: names, title, axis.
const LEFT: i32 = 190;
const RIGHT: i32 = 80;
const TOP: i32 = 48;
const BOTTOM: i32 = 40;
const WIDTH: i32 = 960;
/// The band of a claim.
const CLAIM: RGBColor = RGBColor(250, 220, 160);

/// How many times something is better, beside what is claimed of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    /// Of what.
    pub name: String,
    /// The least that is claimed.
    pub from: f64,
    /// The most.
    pub to: f64,
    /// What was measured.
    pub measured: f64,
    /// Whether that is no result: its bar is hollow.
    pub disturbed: bool,
}

/// A bar a ratio on a logarithmic axis, the claim a band behind it; a claim of one number is a line.
///
/// # Errors
/// [`crate::Error::Chart`].
pub fn ratios(title: &str, ratios: &[Ratio]) -> Result<String> {
    let positive = |value: &f64| value.is_finite() && *value > 0.0;
    let all = || ratios.iter().flat_map(|ratio| [ratio.from, ratio.to, ratio.measured]).filter(positive);
    let least = 10f64.powf(all().fold(1.0, f64::min).log10() - 0.1);
    let most = 10f64.powf(all().fold(10.0, f64::max).log10() + 0.1);
    let x = |value: f64| {
        let share = (value.clamp(least, most).log10() - least.log10()) / (most.log10() - least.log10());
        LEFT + (share * f64::from(WIDTH - LEFT - RIGHT)).round() as i32
    };
    let bottom = TOP + LINE * ratios.len() as i32;
    let mut svg = String::new();
    let root =
        SVGBackend::with_string(&mut svg, (WIDTH as u32, (bottom + BOTTOM) as u32)).into_drawing_area();
    drawn(root.fill(&WHITE))?;
    drawn(root.draw(&Text::new(title.to_string(), (16, 14), ink(16.0))))?;
    let centred = ink(12.0).pos(Pos::new(HPos::Center, VPos::Top));
    for tick in [0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0, 20.0, 50.0, 100.0, 1000.0] {
        if (least..=most).contains(&tick) {
            let line = [(x(tick), TOP), (x(tick), bottom)];
            drawn(root.draw(&PathElement::new(line, if tick == 1.0 { INK } else { GRID })))?;
            drawn(root.draw(&Text::new(format!("{tick}x"), (x(tick), bottom + 8), centred.clone())))?;
        }
    }
    for (index, ratio) in ratios.iter().enumerate() {
        let middle = TOP + LINE * index as i32 + LINE / 2;
        let (from, to) = (x(ratio.from), x(ratio.to).max(x(ratio.from) + 3));
        let band = [(from, middle - LINE / 2 + 3), (to, middle + LINE / 2 - 3)];
        drawn(root.draw(&Rectangle::new(band, CLAIM.filled())))?;
        let (one, end) = (x(1.0), x(ratio.measured));
        let bar = [(one.min(end), middle - BAR / 2), (one.max(end), middle + BAR / 2)];
        let fill = if ratio.disturbed { OURS[0].stroke_width(1) } else { OURS[0].mix(0.85).filled() };
        drawn(root.draw(&Rectangle::new(bar, fill)))?;
        let name = ink(12.0).pos(Pos::new(HPos::Right, VPos::Center));
        drawn(root.draw(&Text::new(ratio.name.clone(), (LEFT - 12, middle), name)))?;
        // Beside the bar, above a band that may be there: that is pale enough to read on.
        let value = ink(12.0).pos(Pos::new(HPos::Left, VPos::Center));
        let at = (end.max(one) + 8, middle);
        drawn(root.draw(&Text::new(format!("{:.2}x", ratio.measured), at, value)))?;
    }
    drawn(root.present())?;
    drop(root);
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ratio_has_its_name_value_band_and_bar() {
        let ratio = |name: &str, from, to, measured| Ratio {
            name: name.into(),
            from,
            to,
            measured,
            disturbed: false,
        };
        let mut all = [
            ratio("cache", 10.0, 100.0, 31.5),
            ratio("drafts", 2.0, 4.0, 0.83),
            ratio("size", 2.0, 2.0, 1.94),
        ];
        let svg = ratios("Times gained", &all).expect("a chart");
        // The background, a band and a bar each.
        assert_eq!(svg.matches("<rect").count(), 1 + 2 * all.len());
        for text in ["cache", "31.50x", "drafts", "0.83x", "size", "1.94x", "Times gained"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("NaN"));
        // Values stand beside their bars, above the bands: of the ratio that ends before its band too.
        let beside: Vec<i32> = svg.split("<rect ").skip(3).step_by(2).map(|rect| end(rect) + 8).collect();
        assert_eq!((beside.len(), beside), (all.len(), values(&svg)));
        all[1].disturbed = true;
        let hollow = ratios("Times gained", &all).expect("a chart");
        assert_eq!(hollow.matches("fill=\"none\"").count(), 1 + svg.matches("fill=\"none\"").count());
        // Nothing, and what is no ratio, can be drawn.
        assert!(ratios("none", &[]).is_ok());
        assert!(ratios("bad", &[ratio("nan", 2.0, 4.0, f64::NAN)]).is_ok());
    }

    /// The right edge of a rectangle.
    fn end(rect: &str) -> i32 {
        let of = |name: &str| -> i32 {
            let text = rect.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
            text.and_then(|text| text.parse().ok()).expect("pixels")
        };
        of("x") + of("width")
    }

    /// Where the values begin, in their order.
    fn values(svg: &str) -> Vec<i32> {
        let is_value = |text: &&str| {
            let shown = text.split('>').nth(1).unwrap_or_default().trim();
            shown.contains('.') && shown.contains("x\n")
        };
        let texts = svg.split("<text ").skip(1).filter(is_value);
        let left = |text: &str| {
            text.split("x=\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_string)
        };
        texts.map(|text| left(text).and_then(|left| left.parse().ok()).expect("pixels")).collect()
    }
}

//! A report as sections of paragraphs, tables and lists, written out as text for terminals or as markdown.
//!
//! Text fits [`COLUMNS`]: paragraphs are wrapped, and so is the last column of a table; what the other columns of a
//! table take is up to who makes it, and held by a test.

/// What a line of text takes at most.
pub const COLUMNS: usize = 100;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// A report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Document {
    pub title: String,
    pub sections: Vec<Section>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    pub title: String,
    pub blocks: Vec<Block>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    Paragraph(String),
    /// The last column takes what is left of the width.
    Table {
        head: Vec<&'static str>,
        rows: Vec<Vec<String>>,
    },
    List(Vec<String>),
    /// Things to tick off.
    Checklist(Vec<String>),
}

impl Section {
    pub fn new(title: impl Into<String>) -> Section {
        Section { title: title.into(), blocks: Vec::new() }
    }

    #[must_use]
    pub fn paragraph(mut self, text: impl Into<String>) -> Section {
        self.blocks.push(Block::Paragraph(text.into()));
        self
    }

    /// A table without rows is left out.
    #[must_use]
    pub fn table<const N: usize>(mut self, head: [&'static str; N], rows: Vec<[String; N]>) -> Section {
        if !rows.is_empty() {
            let rows = rows.into_iter().map(Vec::from).collect();
            self.blocks.push(Block::Table { head: head.to_vec(), rows });
        }
        self
    }

    #[must_use]
    pub fn list(mut self, items: Vec<String>) -> Section {
        self.blocks.push(Block::List(items));
        self
    }

    #[must_use]
    pub fn checklist(mut self, items: Vec<String>) -> Section {
        self.blocks.push(Block::Checklist(items));
        self
    }
}

impl Document {
    pub fn new(title: impl Into<String>) -> Document {
        Document { title: title.into(), sections: Vec::new() }
    }

    pub fn push(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// For terminals; with `colour`, titles and heads of tables stand out.
    pub fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        if !self.title.is_empty() {
            line(&mut out, &styled(&self.title, BOLD, colour));
        }
        for section in &self.sections {
            if !section.title.is_empty() {
                out.push('\n');
                line(&mut out, &styled(&section.title, BOLD, colour));
            }
            for (at, block) in section.blocks.iter().enumerate() {
                if at > 0 || section.title.is_empty() {
                    out.push('\n');
                }
                block_text(&mut out, block, colour);
            }
        }
        out
    }

    pub fn markdown(&self) -> String {
        let mut out = String::new();
        if !self.title.is_empty() {
            line(&mut out, &format!("# {}", self.title));
        }
        for section in &self.sections {
            if !section.title.is_empty() {
                line(&mut out, &format!("\n## {}", section.title));
            }
            for block in &section.blocks {
                out.push('\n');
                block_markdown(&mut out, block);
            }
        }
        out
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn styled(text: &str, style: &str, colour: bool) -> String {
    if colour { format!("{style}{text}{RESET}") } else { text.to_owned() }
}

fn block_text(out: &mut String, block: &Block, colour: bool) {
    match block {
        Block::Paragraph(text) => wrap(text, COLUMNS).iter().for_each(|text| line(out, text)),
        Block::List(items) => items.iter().for_each(|item| hang(out, "- ", item)),
        Block::Checklist(items) => items.iter().for_each(|item| hang(out, "[ ] ", item)),
        Block::Table { head, rows } => table_text(out, head, rows, colour),
    }
}

/// `mark` and the text, its further lines indented below its first.
fn hang(out: &mut String, mark: &str, text: &str) {
    let indent = " ".repeat(mark.len());
    for (at, text) in wrap(text, COLUMNS - mark.len()).iter().enumerate() {
        line(out, &format!("{}{text}", if at == 0 { mark } else { &indent }));
    }
}

fn table_text(out: &mut String, head: &[&str], rows: &[Vec<String>], colour: bool) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let last = head.len() - 1;
    let widths: Vec<usize> = (0..last).map(width).collect();
    let indent: usize = widths.iter().map(|width| width + 2).sum();
    let room = COLUMNS.saturating_sub(indent).max(1);
    let numeric = |column: usize| rows.iter().all(|row| is_figure(&row[column]));
    let right: Vec<bool> = (0..head.len()).map(numeric).collect();
    let tail = width(last).min(room);
    let render = |cells: &[&str]| {
        let mut lines = Vec::new();
        let mut start = String::new();
        for (column, width) in widths.iter().enumerate() {
            start.push_str(&pad(cells[column], *width, right[column]));
            start.push_str("  ");
        }
        for (at, text) in wrap(cells[last], room).iter().enumerate() {
            let start = if at == 0 { start.clone() } else { " ".repeat(indent) };
            lines.push(format!("{start}{}", pad(text, tail, right[last])).trim_end().to_owned());
        }
        lines
    };
    render(head).iter().for_each(|text| line(out, &styled(text, DIM, colour)));
    for row in rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        render(&cells).iter().for_each(|text| line(out, text));
    }
}

/// Whether a column of such cells is set flush right.
fn is_figure(cell: &str) -> bool {
    let number_and_unit = cell.split(' ').count() <= 2 && !cell.contains(':');
    cell.is_empty() || cell == "-" || (number_and_unit && cell.starts_with(|c: char| c.is_ascii_digit()))
}

fn pad(text: &str, width: usize, right: bool) -> String {
    let fill = " ".repeat(width.saturating_sub(text.chars().count()));
    if right { format!("{fill}{text}") } else { format!("{text}{fill}") }
}

/// Lines of at most `width`; a word that is longer stands alone. Never empty.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let current = lines.last_mut().expect("it begins with one line");
        if current.is_empty() {
            current.push_str(word);
        } else if current.chars().count() + 1 + word.chars().count() <= width {
            current.push(' ');
            current.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn block_markdown(out: &mut String, block: &Block) {
    match block {
        Block::Paragraph(text) => line(out, text),
        Block::List(items) => items.iter().for_each(|item| line(out, &format!("- {item}"))),
        Block::Checklist(items) => items.iter().for_each(|item| line(out, &format!("- [ ] {item}"))),
        Block::Table { head, rows } => {
            line(out, &format!("| {} |", head.join(" | ")));
            line(out, &format!("|{}", " --- |".repeat(head.len())));
            for row in rows {
                let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
                line(out, &format!("| {} |", cells.join(" | ")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Document {
        let mut document = Document::new("Report");
        let rows = vec![
            ["a".into(), "1".into(), "word ".repeat(30).trim().into()],
            ["long name".into(), "12".into(), "x | y".into()],
        ];
        document.push(
            Section::new("Part")
                .paragraph("one two")
                .table(["name", "n", "why"], rows)
                .checklist(vec!["do".into()]),
        );
        document
    }

    #[test]
    fn text_fits_and_aligns() {
        let text = sample().text(false);
        assert!(
            text.lines().all(|line| line.chars().count() <= COLUMNS && line == line.trim_end()),
            "{text}"
        );
        assert!(text.contains("\na           1  word word"), "{text}");
        assert!(text.contains("\n               word"), "{text}");
        assert!(text.contains("[ ] do"));
        assert!(!text.contains('\x1b') && sample().text(true).contains("\x1b[1mReport\x1b[0m"));
    }

    #[test]
    fn markdown_keeps_cells_apart() {
        let text = sample().markdown();
        assert!(text.contains("| name | n | why |\n| --- | --- | --- |\n| a | 1 | word"), "{text}");
        assert!(text.contains("| long name | 12 | x \\| y |"), "{text}");
        assert!(text.contains("- [ ] do"));
    }
}

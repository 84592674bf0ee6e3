// A page's serialised HTML as text blocks and boxes: openafm.data._blocks, what openafm.data.blocks does in Python, for
// every input the same. It is linear in the page: what is not found once is not looked for again.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <algorithm>
#include <array>
#include <cwchar>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

using View = std::u32string_view;

struct PythonError {};  // an exception is set

struct Ref {
  PyObject* object;
  explicit Ref(PyObject* made) : object(made) {
    if (!made) throw PythonError();
  }
  Ref(const Ref&) = delete;
  ~Ref() { Py_DECREF(object); }
  PyObject* release() { return Py_NewRef(object); }
};

enum class Action { none, box, skip, line_break, link, rule, nothing_inside };

struct Tag {
  Action action = Action::none;
  const char* name = "";
  bool pre = false, heading = false, item = false, list = false, ordered = false, table = false, row = false, cell = false,
       breaks_lines = false;  // inside a listing
};

const std::unordered_map<std::string_view, Tag>& tags() {
  static const auto known = [] {
    std::unordered_map<std::string_view, Tag> made;
    for (const char* name : {"address", "article", "aside", "blockquote", "center", "dd", "details", "div", "dl", "dt",
                             "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup", "legend", "li", "main",
                             "nav", "ol", "p", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "td", "th", "ul",
                             "caption", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "listing"})
      made[name] = {Action::box, name};
    for (const char* name : {"audio", "button", "canvas", "datalist", "dialog", "head", "map", "math", "object", "option",
                             "select", "svg", "template", "textarea", "video"})
      made[name] = {Action::skip, name};
    for (const char* name : {"area", "base", "body", "col", "embed", "img", "input", "link", "meta", "param", "source", "track",
                             "wbr"})
      made[name] = {Action::nothing_inside, name};
    made["br"] = {Action::line_break, "br"};
    made["a"] = {Action::link, "a"};
    made["hr"] = {Action::rule, "hr"};
    for (const char* name : {"pre", "listing"}) made[name].pre = true;
    for (const char* name : {"h1", "h2", "h3", "h4", "h5", "h6"}) made[name].heading = true;
    for (const char* name : {"div", "p", "li", "tr"}) made[name].breaks_lines = true;
    for (const char* name : {"tr", "caption", "table"}) made[name].row = true;
    for (const char* name : {"td", "th"}) made[name].cell = true;
    for (const char* name : {"ul", "ol"}) made[name].list = true;
    made["ol"].ordered = made["li"].item = made["table"].table = true;
    return made;
  }();
  return known;
}

constexpr std::array<const char32_t*, 8> kUnescaped = {U"script", U"style", U"noscript", U"iframe",
                                                       U"xmp",    U"noembed", U"noframes", U"plaintext"};
constexpr char32_t kBreak = 0x1e;
constexpr size_t kNone = View::npos;

// Where a character is found from `at` on; the library's own search where it knows characters of this width.
size_t find(View text, char32_t c, size_t at) {
  if (at >= text.size()) return kNone;
  if constexpr (sizeof(wchar_t) == sizeof(char32_t)) {
    const auto* from = reinterpret_cast<const wchar_t*>(text.data());
    const wchar_t* found = std::wmemchr(from + at, static_cast<wchar_t>(c), text.size() - at);
    return found ? static_cast<size_t>(found - from) : kNone;
  } else {
    return text.find(c, at);
  }
}

bool is_space(char32_t c) { return Py_UNICODE_ISSPACE(static_cast<Py_UCS4>(c)); }
bool all_space(View text) { return std::all_of(text.begin(), text.end(), is_space); }

bool starts(View text, size_t at, View with) {
  if (at + with.size() > text.size()) return false;
  for (size_t i = 0; i < with.size(); i++)
    if (text[at + i] != with[i]) return false;
  return true;
}

View stripped(View text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// Python's " ".join(text.split()), appended.
void append_words(View text, std::u32string& to) {
  bool first = true;
  for (size_t at = 0; at < text.size();) {
    if (is_space(text[at])) {
      at++;
      continue;
    }
    const size_t start = at;
    while (at < text.size() && !is_space(text[at])) at++;
    if (!first) to += U' ';
    first = false;
    to.append(text, start, at - start);
  }
}

struct Block {
  const char* kind;
  std::u32string text;
  Py_ssize_t linked;
  int box;
  std::string marker;
  int depth;
  Py_ssize_t group = -1;
  size_t words = 0;

  void count() {
    words = 1 + static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char32_t c) { return c == U' ' || c == U'\n'; }));
    if (text.size() >= 15 * words) words = text.size() / 4;  // Chinese and Japanese put no spaces
  }
};

struct Box {
  int parent;
  const Tag* tag;
  std::u32string names;
  int row, cell;  // the nearest row around, and the outermost cell within it, -1 for none
};

// The values of the attributes that name an element, in a row and without digits: openafm.data.names.names_of.
std::u32string names_of(View attributes) {
  static constexpr std::array<View, 6> marks = {U"class", U"id", U"role", U"itemprop", U"data-component", U"data-testid"};
  std::u32string names;
  bool first = true;
  for (size_t at = find(attributes, U' ', 0); at != kNone; at = find(attributes, U' ', at)) {
    at++;
    for (const View mark : marks) {
      const size_t equals = at + mark.size();
      if (!starts(attributes, at, mark) || !starts(attributes, equals, U"=\"")) continue;
      const size_t end = find(attributes, U'"', equals + 2);
      if (end == kNone) break;
      if (!first) names += U' ';
      first = false;
      for (const char32_t c : attributes.substr(equals + 2, end - equals - 2))
        if (c < U'0' || c > U'9') names += c;
      at = end + 1;
      break;
    }
  }
  return names;
}

// A tag of the page, or something without text such as a comment: then `name` is empty.
struct Token {
  size_t start, end;
  View name, attributes;
  bool closing;
};

class Reader {
 public:
  explicit Reader(View page) : page_(page) {}

  // The first token from `at` on; false where there is none.
  bool next(size_t at, Token& token) {
    for (at = find(page_, U'<', at); at < never_ended_; at = find(page_, U'<', at + 1))
      if (unescaped(at, token) || tag(at, token) || other(at, token)) return true;
    return false;
  }

 private:
  // ((?: [^\s=>]*="[^"]*")*+)
  size_t attributes(size_t at) const {
    while (at < page_.size() && page_[at] == U' ') {
      size_t end = at + 1;
      while (end < page_.size() && !is_space(page_[end]) && page_[end] != U'=' && page_[end] != U'>') end++;
      if (end + 1 >= page_.size() || page_[end] != U'=' || page_[end + 1] != U'"') break;
      end = find(page_, U'"', end + 2);
      if (end == kNone) break;
      at = end + 1;
    }
    return at;
  }

  bool unescaped(size_t at, Token& token) {
    const char32_t first = at + 1 < page_.size() ? page_[at + 1] : 0;
    if (first != U's' && first != U'n' && first != U'i' && first != U'x' && first != U'p') return false;
    for (size_t which = 0; which < kUnescaped.size(); which++) {
      const View name = kUnescaped[which];
      if (!starts(page_, at + 1, name)) continue;
      const size_t end = attributes(at + 1 + name.size());
      if (end >= page_.size() || page_[end] != U'>' || end + 1 >= never_closed_[which]) continue;
      for (size_t close = page_.find(U"</", end + 1); close != kNone; close = page_.find(U"</", close + 1))
        if (starts(page_, close + 2, name) && starts(page_, close + 2 + name.size(), U">")) {
          token = {at, close + 3 + name.size(), {}, {}, false};
          return true;
        }
      never_closed_[which] = end + 1;
    }
    return false;
  }

  // <(/?)([a-z][^\s/>]*)ATTRIBUTES ?/?>
  bool tag(size_t at, Token& token) const {
    size_t end = at + 1;
    const bool closing = end < page_.size() && page_[end] == U'/';
    end += closing;
    const size_t name = end;
    if (end >= page_.size() || page_[end] < U'a' || page_[end] > U'z') return false;
    while (end < page_.size() && !is_space(page_[end]) && page_[end] != U'/' && page_[end] != U'>') end++;
    const size_t named = end, listed = attributes(end);
    end = listed;
    end += end < page_.size() && page_[end] == U' ';
    end += end < page_.size() && page_[end] == U'/';
    if (end >= page_.size() || page_[end] != U'>') return false;
    token = {at, end + 1, page_.substr(name, named - name), page_.substr(named, listed - named), closing};
    return true;
  }

  // <!--.*?--> or <[^>]*>
  bool other(size_t at, Token& token) {
    size_t end = kNone;
    if (starts(page_, at + 1, U"!--") && at + 4 < comment_never_closed_) {
      end = page_.find(U"-->", at + 4);
      if (end == kNone) comment_never_closed_ = at + 4;
      else end += 3;
    }
    if (end == kNone && at + 1 < never_ended_) {
      end = find(page_, U'>', at + 1);
      if (end == kNone) never_ended_ = at + 1;
      else end += 1;
    }
    if (end == kNone) return false;
    token = {at, end, {}, {}, false};
    return true;
  }

  View page_;
  // where it was found that nothing closes what begins there or later
  std::array<size_t, kUnescaped.size()> never_closed_ = filled();
  size_t comment_never_closed_ = kNone, never_ended_ = kNone;

  static std::array<size_t, kUnescaped.size()> filled() {
    std::array<size_t, kUnescaped.size()> all;
    all.fill(kNone);
    return all;
  }
};

PyObject* python_text(View text) {
  return PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.data(), static_cast<Py_ssize_t>(text.size()));
}

class Sweep {
 public:
  Sweep(PyObject* hidden, PyObject* image_formula, PyObject* is_post)
      : hidden_(hidden), image_formula_(image_formula), is_post_(is_post) {
    boxes.push_back({-1, &body_, {}, 0, -1});
  }

  std::vector<Block> blocks;
  std::vector<Box> boxes;

  void read(View page, Py_ssize_t limit) {
    Reader reader(page);
    View skipped;
    size_t depth = 0;
    bool in_link = false;
    Token token{};
    for (size_t at = 0; limit-- > 0 && reader.next(at, token); at = token.end) {
      if (depth) {
        if (token.name == skipped && !skipped.empty()) depth += token.closing ? -1 : 1;
        continue;
      }
      text(page.substr(at, token.start - at), in_link);
      if (token.name.empty()) continue;
      const Tag* tag = known(token.name);
      const Action action = tag ? tag->action : Action::none;
      const bool may_hide = action != Action::line_break && action != Action::rule && action != Action::nothing_inside;
      if (!token.closing && (action == Action::skip || (may_hide && !token.attributes.empty() && is_hidden(token.attributes)))) {
        skipped = token.name;
        depth = 1;
        continue;
      }
      switch (action) {
        case Action::none:
        case Action::skip: break;
        case Action::nothing_inside:
          if (token.name == U"img") image(token.attributes);
          break;
        case Action::box: token.closing ? end(*tag) : start(*tag, token.attributes); break;
        case Action::link: in_link = !token.closing && token.attributes.find(U" href=") != kNone; break;
        case Action::line_break: line_break(); break;
        case Action::rule:
          if (pieces_ && !pre_) flush("p");
      }
    }
    if (pieces_) flush("p");
  }

 private:
  struct Open {
    const Tag* tag;
    size_t first;    // block inside
    size_t layouts;  // tables and posts up to here
  };
  struct List {
    bool ordered;
    int next;
  };

  static const Tag* known(View name) {
    char ascii[16];
    if (name.size() > sizeof ascii) return nullptr;
    for (size_t i = 0; i < name.size(); i++) {
      if (name[i] > 127) return nullptr;
      ascii[i] = static_cast<char>(name[i]);
    }
    static const auto& all = tags();
    const auto found = all.find(std::string_view(ascii, name.size()));
    return found == all.end() ? nullptr : &found->second;
  }

  // Asks Python only about what may hide: its attributes are few.
  bool is_hidden(View attributes) const {
    bool asked = false;
    for (size_t at = 0; at < attributes.size() && !asked;) {
      const size_t equals = find(attributes, U'=', at);
      const View name = attributes.substr(at + 1, equals - at - 1);
      const size_t end = find(attributes, U'"', equals + 2);
      const View value = attributes.substr(equals + 2, end - equals - 2);
      if (name == U"class" || name == U"id") asked = says(value, U"line") || says(value, U"copybtn") || says(value, U"mathjax");
      else if (name == U"style") asked = says(value, U"none") || says(value, U"hidden");
      else asked = name == U"hidden" || name == U"aria-hidden";
      at = end + 1;
    }
    if (!asked) return false;
    const Ref given(python_text(attributes));
    const Ref answer(PyObject_CallOneArg(hidden_, given.object));
    return answer.object == Py_True;
  }

  // Tells whether a lower-case word of ASCII stands in a text, in either case.
  static bool says(View text, View word) {
    for (size_t at = 0; at + word.size() <= text.size(); at++) {
      size_t same = 0;
      while (same < word.size() && (text[at + same] | 0x20) == word[same]) same++;
      if (same == word.size()) return true;
    }
    return false;
  }

  bool is_post(View names) const {
    const Ref given(python_text(names));
    const Ref answer(PyObject_CallOneArg(is_post_, given.object));
    return answer.object == Py_True;
  }

  void add(View piece) {
    last_ = running_.size();
    running_ += piece;
    pieces_++;
  }

  void text(View piece, bool in_link) {
    if (piece.empty() || (!pieces_ && !pre_ && all_space(piece))) return;
    if (in_link && !pre_) {
      static constexpr std::array<View, 8> marks = {U"¶", U"#", U"§", U"🔗", U"◆", U"", U"[edit]", U"[source]"};
      if (piece.size() <= 9 && std::find(marks.begin(), marks.end(), stripped(piece)) != marks.end()) return;
      linked_ += static_cast<Py_ssize_t>(piece.size());
    }
    add(piece);
  }

  void image(View attributes) {
    if (attributes.find(U"tex") == kNone && attributes.find(U"math") == kNone) return;
    const Ref given(python_text(attributes));
    const Ref formula(PyObject_CallOneArg(image_formula_, given.object));
    std::u32string wide(static_cast<size_t>(PyUnicode_GET_LENGTH(formula.object)), 0);
    if (wide.empty()) return;
    if (!PyUnicode_AsUCS4(formula.object, reinterpret_cast<Py_UCS4*>(wide.data()), PyUnicode_GET_LENGTH(formula.object), 0))
      throw PythonError();
    add(wide);
  }

  void line_break() {
    const View last = View(running_).substr(last_);
    if (pieces_ > 1 && last.size() == 1 && last[0] == kBreak && !pre_) flush("p");  // two in a row part paragraphs
    else if (pieces_ || pre_) add(View(&kBreak, 1));
  }

  // End the running text and keep it as a block.
  void flush(const char* kind) {
    std::u32string text = kind[0] == 'p' && kind[1] == 'r' ? listing() : prose();
    const Py_ssize_t linked = linked_;
    running_.clear();
    pieces_ = last_ = 0;
    linked_ = 0;
    if (text.empty() || all_space(text)) return;
    blocks.push_back({kind, std::move(text), linked, path_.back(), marker_, static_cast<int>(lists_.size())});
    blocks.back().count();
    marker_.clear();
  }

  void unescape() {
    static constexpr std::array<std::pair<View, char32_t>, 4> entities = {
        {{U"&nbsp;", U' '}, {U"&lt;", U'<'}, {U"&gt;", U'>'}, {U"&amp;", U'&'}}};
    size_t from = running_.find(U'&'), to = from;
    if (from == kNone) return;
    while (from < running_.size()) {
      char32_t c = running_[from];
      size_t length = 1;
      if (c == U'&')
        for (const auto& [written, meant] : entities)
          if (starts(running_, from, written)) {
            c = meant;
            length = written.size();
            break;
          }
      running_[to++] = c;
      from += length;
    }
    running_.resize(to);
  }

  std::u32string prose() {
    unescape();
    std::u32string made;
    made.reserve(running_.size());
    if (running_.find(kBreak) == kNone) {
      append_words(running_, made);
      return made;
    }
    for (size_t at = 0; at <= running_.size();) {
      const size_t end = std::min(running_.find(kBreak, at), running_.size());
      append_words(View(running_).substr(at, end - at), made);
      if (end < running_.size()) made += U'\n';
      at = end + 1;
    }
    return std::u32string(stripped(made));
  }

  // Tab stops of four columns; no white space at the end, no empty lines at the beginning.
  std::u32string listing() {
    unescape();
    std::u32string made;
    size_t column = 0;
    for (char32_t c : running_) {
      if (c == kBreak) c = U'\n';
      if (c == U'\t') {
        const size_t spaces = 4 - column % 4;
        made.append(spaces, U' ');
        column += spaces;
        continue;
      }
      column = c == U'\n' || c == U'\r' ? 0 : column + 1;
      made += c;
    }
    View view = made;
    while (!view.empty() && is_space(view.back())) view.remove_suffix(1);
    while (!view.empty() && view.front() == U'\n') view.remove_prefix(1);
    return std::u32string(view);
  }

  void start(const Tag& tag, View attributes) {
    if (pre_) {  // lines of a listing may be wrapped in blocks
      if (tag.pre) pre_++;
      else if (tag.breaks_lines && pieces_ && running_.back() != U'\n') add(U"\n");
      return;
    }
    if (pieces_) flush("p");
    const int box = static_cast<int>(boxes.size()), parent = path_.back();
    const Box& around = boxes[static_cast<size_t>(parent)];
    const int row = tag.row ? box : around.row;
    const int cell = tag.row ? -1 : around.cell == -1 && tag.cell ? box : around.cell;
    boxes.push_back({parent, &tag, names_of(attributes), row, cell});
    path_.push_back(box);
    layouts_ += tag.table || (tables_ && !boxes.back().names.empty() && is_post(boxes.back().names));
    tables_ += tag.table;
    open_.push_back({&tag, blocks.size(), layouts_});
    if (tag.pre) pre_ = 1;
    else if (tag.list) lists_.push_back({tag.ordered, 1});
    else if (tag.item && !lists_.empty()) {
      List& list = lists_.back();
      marker_ = list.ordered ? std::to_string(list.next) + ". " : "- ";
      list.next++;
    }
  }

  void end(const Tag& tag) {
    if (pre_ && (pre_ -= tag.pre)) return;
    if (open_.empty() || open_.back().tag != &tag) return;
    if (pieces_) flush(tag.pre ? "pre" : tag.heading ? tag.name : "p");
    const size_t first = open_.back().first, layouts = open_.back().layouts;
    open_.pop_back();
    path_.pop_back();
    if (tag.list) {
      lists_.pop_back();
      if (lists_.empty()) group_list(first);
    } else if (tag.item) {
      marker_.clear();
    } else if (tag.table) {
      tables_--;
      if (layouts == layouts_) join_table(first);  // one that holds posts or another table has no rows of data
    }
  }

  // Judge a list of short items as a whole; items as long as paragraphs speak for themselves.
  void group_list(size_t first) {
    size_t words = 0;
    for (size_t i = first; i < blocks.size(); i++) {
      if (blocks[i].kind[1]) return;  // other than "p"
      words += blocks[i].words;
    }
    if (words < 40 * (blocks.size() - first))
      for (size_t i = first; i < blocks.size(); i++) blocks[i].group = static_cast<Py_ssize_t>(first);
  }

  // Join a data table's cells into blocks of rows, parted by headings; a table used for layout keeps its blocks.
  void join_table(size_t first) {
    for (size_t i = first; i < blocks.size(); i++)
      if (!blocks[i].marker.empty() || std::string_view(blocks[i].kind) == "pre" || std::string_view(blocks[i].kind) == "table") return;
    std::vector<Block> cells(std::make_move_iterator(blocks.begin() + static_cast<Py_ssize_t>(first)),
                             std::make_move_iterator(blocks.end()));
    blocks.erase(blocks.begin() + static_cast<Py_ssize_t>(first), blocks.end());
    size_t start = 0;
    for (size_t at = 0; at <= cells.size(); at++) {
      if (at < cells.size() && !cells[at].kind[1]) continue;
      rows(cells, start, at, static_cast<Py_ssize_t>(first + at));
      if (at < cells.size()) blocks.push_back(std::move(cells[at]));
      start = at + 1;
    }
  }

  // Add cells as one block, a line a row and bars between columns, unless they look like layout.
  void rows(std::vector<Block>& cells, size_t from, size_t to, Py_ssize_t group) {
    std::vector<std::vector<std::u32string>> lines;
    std::unordered_map<int, size_t> line_of;
    std::map<std::pair<int, int>, size_t> column_of;
    size_t words = 0, widest = 0, count = to - from;
    Py_ssize_t linked = 0;
    for (size_t i = from; i < to; i++) {
      const Block& cell = cells[i];
      const Box& box = boxes[static_cast<size_t>(cell.box)];
      const auto [place, is_new_line] = line_of.try_emplace(box.row, lines.size());
      if (is_new_line) lines.emplace_back();
      auto& line = lines[place->second];
      const auto [column, is_new] = column_of.try_emplace({box.row, box.cell}, line.size());
      std::u32string text = cell.text;
      std::replace(text.begin(), text.end(), U'\n', U' ');
      if (is_new) line.push_back(std::move(text));
      else (line[column->second] += U' ') += text;
      widest = std::max(widest, line.size());
      words += cell.words;
      linked += cell.linked;
    }
    if (widest < 2 || words > 60 * count || count > 4 * widest * lines.size()) {
      for (size_t i = from; i < to; i++) blocks.push_back(std::move(cells[i]));
      return;
    }
    std::u32string text;
    for (size_t l = 0; l < lines.size(); l++) {
      if (l) text += U'\n';
      for (size_t c = 0; c < lines[l].size(); c++) (text += c ? U" | " : U"") += lines[l][c];
    }
    blocks.push_back({"table", std::move(text), linked, boxes[static_cast<size_t>(cells[from].box)].parent, "", 0, group});
    blocks.back().count();
  }

  static inline const Tag body_{Action::none, "body"};
  PyObject *hidden_, *image_formula_, *is_post_;
  std::vector<Open> open_;
  std::vector<int> path_ = {0};
  std::vector<List> lists_;
  std::u32string running_;  // the pieces of the running text
  size_t pieces_ = 0, last_ = 0;  // how many, and where the last one begins
  Py_ssize_t linked_ = 0;
  size_t pre_ = 0, tables_ = 0, layouts_ = 0;
  std::string marker_;
};

// The attributes of a `Block`, which is a dataclass with slots, in the order they are set in.
constexpr std::array<const char*, 8> kFields = {"kind", "text", "linked", "box", "marker", "depth", "group", "words"};

// Makes objects of a class with slots. Their places are looked up once; writing there is a tenth of setting attributes.
class Maker {
 public:
  explicit Maker(PyTypeObject* type) : type_(type) {
    for (size_t i = 0; i < kFields.size(); i++) {
      const Ref slot(PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), kFields[i]));
      if (!PyObject_TypeCheck(slot.object, &PyMemberDescr_Type)) {
        PyErr_Format(PyExc_TypeError, "%s.%s is no slot", type->tp_name, kFields[i]);
        throw PythonError();
      }
      places_[i] = reinterpret_cast<PyMemberDescrObject*>(slot.object)->d_member->offset;
    }
  }

  PyObject* block(const Block& block) const {
    Ref made(type_->tp_alloc(type_, 0));
    const auto set = [&](size_t field, PyObject* value) {
      if (!value) throw PythonError();
      *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(made.object) + places_[field]) = value;
    };
    set(0, interned(block.kind));
    set(1, python_text(block.text));
    set(2, PyLong_FromSsize_t(block.linked));
    set(3, PyLong_FromLong(block.box));
    set(4, PyUnicode_FromStringAndSize(block.marker.data(), static_cast<Py_ssize_t>(block.marker.size())));
    set(5, PyLong_FromLong(block.depth));
    set(6, PyLong_FromSsize_t(block.group));
    set(7, PyLong_FromSize_t(block.words));
    return made.release();
  }

  // The string of a literal, made once.
  static PyObject* interned(const char* literal) {
    static std::unordered_map<const void*, PyObject*> known;
    PyObject*& text = known[literal];
    if (!text) text = PyUnicode_InternFromString(literal);
    return Py_XNewRef(text);
  }

 private:
  PyTypeObject* type_;
  std::array<Py_ssize_t, kFields.size()> places_;
};

template <class Item, class Make> PyObject* python_list(const std::vector<Item>& items, Make make) {
  Ref list(PyList_New(static_cast<Py_ssize_t>(items.size())));
  for (size_t i = 0; i < items.size(); i++) PyList_SET_ITEM(list.object, static_cast<Py_ssize_t>(i), Ref(make(items[i])).release());
  return list.release();
}

PyObject* read_blocks(PyObject*, PyObject* arguments) {
  PyObject *html, *type, *hidden, *image_formula, *is_post;
  Py_ssize_t limit;
  if (!PyArg_ParseTuple(arguments, "UnO!OOO", &html, &limit, &PyType_Type, &type, &hidden, &image_formula, &is_post)) return nullptr;
  static thread_local std::u32string page;  // its memory stays: asking for it anew costs as much as reading it
  page.resize(static_cast<size_t>(PyUnicode_GET_LENGTH(html)));
  if (!page.empty() && !PyUnicode_AsUCS4(html, reinterpret_cast<Py_UCS4*>(page.data()), PyUnicode_GET_LENGTH(html), 0)) return nullptr;
  try {
    Sweep sweep(hidden, image_formula, is_post);
    sweep.read(page, limit);
    const Maker maker(reinterpret_cast<PyTypeObject*>(type));
    const Ref blocks(python_list(sweep.blocks, [&](const Block& b) { return maker.block(b); }));
    const Ref parents(python_list(sweep.boxes, [](const Box& b) { return PyLong_FromLong(b.parent); }));
    const Ref tags(python_list(sweep.boxes, [](const Box& b) { return Maker::interned(b.tag->name); }));
    const Ref named(python_list(sweep.boxes, [](const Box& b) { return python_text(b.names); }));
    return PyTuple_Pack(4, blocks.object, parents.object, tags.object, named.object);
  } catch (const PythonError&) {
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyMethodDef methods[] = {{"read_blocks", read_blocks, METH_VARARGS, nullptr}, {}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_blocks", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__blocks() { return PyModule_Create(&module); }

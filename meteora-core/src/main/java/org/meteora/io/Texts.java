package org.meteora.io;

import java.io.BufferedReader;
import java.io.FilterReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.meteora.UserException;

/** Text files: UTF-8 whatever the locale says, a byte order mark passed over. */
public final class Texts {
  private static final char BYTE_ORDER_MARK = '\uFEFF';
  private static final char REPLACEMENT = '\uFFFD';

  private static final int LONGEST_LINE = 1 << 26;

  private Texts() {}

  /**
   * A whole text file.
   *
   * @throws UserException when it is missing, cannot be read, or is not UTF-8
   */
  public static String read(Path file) {
    try {
      return decode(Files.readAllBytes(file));
    } catch (CharacterCodingException e) {
      throw new UserException(file + ": not UTF-8 text");
    } catch (IOException e) {
      throw new UserException("cannot read " + file + ": " + AtomicFiles.reason(e), e);
    } catch (OutOfMemoryError e) {
      throw new UserException("cannot read " + file + ": it is too large to be read at once");
    }
  }

  /** A text that comes with this software, beside a class or, with a slash before it, anywhere. */
  public static String resource(Class<?> beside, String name) {
    try (var in = beside.getResourceAsStream(name)) {
      return decode(in.readAllBytes());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static String decode(byte[] bytes) throws CharacterCodingException {
    var text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
    return withoutMark(text);
  }

  /**
   * Lines of a stream; malformed input is a {@link CharacterCodingException}, a line that does not
   * end an {@link IOException}.
   */
  public static BufferedReader lines(InputStream in) throws IOException {
    var text = new InputStreamReader(in, StandardCharsets.UTF_8.newDecoder());
    var reader = new BufferedReader(new Bounded(text));
    reader.mark(1);
    if (reader.read() != BYTE_ORDER_MARK) {
      reader.reset();
    }
    return reader;
  }

  /** Ends where a line is longer than any text: a device, or a file of another kind. */
  private static final class Bounded extends FilterReader {
    private long sinceLine;

    Bounded(Reader in) {
      super(in);
    }

    @Override
    public int read(char[] to, int from, int length) throws IOException {
      int n = in.read(to, from, length);
      sinceLine += Math.max(0, n);
      for (int i = from + n - 1; i >= from; i--) {
        if (to[i] == '\n') {
          sinceLine = from + n - 1 - i;
          break;
        }
      }
      if (sinceLine > LONGEST_LINE) {
        throw new IOException("a line of more than " + LONGEST_LINE + " characters");
      }
      return n;
    }
  }

  /** The text without the byte order mark that it may begin with. */
  public static String withoutMark(String text) {
    return !text.isEmpty() && text.charAt(0) == BYTE_ORDER_MARK ? text.substring(1) : text;
  }

  /**
   * The text with every half of a surrogate pair replaced by U+FFFD: UTF-8 has no bytes for one.
   */
  public static String wellFormed(String text) {
    if (text.chars().noneMatch(c -> Character.isSurrogate((char) c))) {
      return text;
    }
    return text.codePoints() // one of a pair
        .map(c -> Character.isBmpCodePoint(c) && Character.isSurrogate((char) c) ? REPLACEMENT : c)
        .collect(StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
        .toString();
  }

  /** The text with what HTML has a meaning for escaped. */
  public static String escapeHtml(String text) {
    return text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("\"", "&quot;");
  }

  /** Lines of columns that are as wide as their widest cell, two spaces before each. */
  public static String aligned(List<List<String>> rows) {
    var text = new StringBuilder();
    for (var row : rows) {
      var line = new StringBuilder();
      for (int c = 0; c < row.size(); c++) {
        int column = c;
        int width = rows.stream().mapToInt(each -> each.get(column).length()).max().orElse(0);
        line.append("  ").append(row.get(c)).append(" ".repeat(width - row.get(c).length()));
      }
      text.append(line.toString().stripTrailing()).append('\n');
    }
    return text.toString();
  }
}

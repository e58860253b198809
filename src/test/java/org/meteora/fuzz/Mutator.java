package org.meteora.fuzz;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import org.meteora.io.Jsonl;

/** Makes inputs out of good ones: bytes, words and parts of JSON changed, moved, doubled, lost. */
final class Mutator {
  private static final String[] VALUES = {
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "2",
    "1e999",
    "-1e999",
    "1e400",
    "1e-400",
    "0.5",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "2147483648",
    "1e9",
    "99999999999999999999999999",
    "\"\"",
    "\"x\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"../../x\"",
    "\"/etc/passwd\"",
    "\"0\"",
    "\"true\"",
    "\"NaN\"",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "{\"\":null}",
    "[1,2,3]",
    "{\"type\":\"x\"}",
    "\"\\n\\r\\t\\u001b[31m\"",
    "\"😀\"",
    "\".*.*.*.*.*.*.*.*.*X\"",
    "\"(((\"",
    "\"(?P<a>x)\"",
    "\"(x+x+)+y\"",
    "\"(?:a|a|x)*b\"",
    "[0,1e18]",
    "[1e18,0]",
    "[-1,4]",
    "\"F64\"",
    "\"F8_E4M3\"",
    "\"BPE\"",
    "\"Unigram\"",
    "\"WordPiece\"",
    "\"WordLevel\"",
    "\"Sequence\"",
    "\"ByteLevel\"",
    "\"Precompiled\"",
    "\"Replace\"",
    "\"Metaspace\"",
    "\"TemplateProcessing\"",
    "\"Split\"",
    "\"Strip\"",
    "\"Fuse\"",
    "\"NFKC\"",
    "\"Prepend\"",
    "\"ByteFallback\"",
    "\"CTC\"",
    "\"Digits\""
  };
  private static final String[] WORDS = {
    "\r\n",
    "\n",
    "\0",
    "\ufeff",
    ":",
    ": ",
    ", ",
    "- ",
    "? ",
    "&a ",
    "*a",
    "!!int ",
    "!!binary ",
    "|",
    ">",
    "#",
    "'",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "---",
    "...",
    "%",
    "@",
    "`",
    "<<: ",
    "\t",
    "~",
    "0x",
    "1e999",
    "é",
    "😀",
    "\\ud800"
  };
  private static final String[] HEADERS = {
    "Link: <file:///x>; rel=\"next\"",
    "Link: </api/models/o/n/tree/x?cursor={N}>; rel=\"next\"",
    "Link: <http://[>; rel=next",
    "Link: ; rel=\"next\", <a>; rel=\"prev\"",
    "Content-Length: -1",
    "Content-Length: 0",
    "Content-Length: 7",
    "Content-Length: {LEN}, {LEN}",
    "Content-Length: 0x5",
    "Content-Length: 99999999999999999999",
    "Content-Length: 9223372036854775807",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity",
    "Content-Encoding: gzip",
    "Content-Range: bytes 5-1/2",
    "Content-Range: bytes */360",
    "Content-Range: bytes 0-359/360",
    "Content-Range: bytes {FROM}-{TO}/*",
    "Content-Range: bytes 99999999999999999999-1/1",
    "Content-Type: multipart/byteranges; boundary=x",
    "Location: http://127.0.0.1:99999/",
    "Location: https://cdn.invalid/blob/b",
    "Location: //cdn.invalid/blob/b",
    "Location: http://hub.invalid/blob/{N}",
    "Location: file:///etc/passwd",
    "Location: http:///x",
    "Location: ?",
    "Location: \u001b]52;c;eA==\u0007",
    "Retry-After: 1e9",
    "Retry-After: -5",
    "Retry-After: 99999999999999999999",
    "Retry-After: Wed, 21 Oct 9999 07:28:00 GMT",
    "RateLimit: \"api\";r=0;t=99999999999",
    "X-Error-Code: GatedRepo",
    "X-Error-Message: a\u001b[31m\u009bb",
    "ETag: \"x",
    "Set-Cookie: a=b; Max-Age=99999999999999999999",
    "WWW-Authenticate: Negotiate",
    "WWW-Authenticate: NTLM",
    "Proxy-Authenticate: Basic realm=\"x\"",
    "Proxy-Authenticate: Digest realm=\"x\", nonce=\"y\", algorithm=MD5-sess",
    "Connection: close",
    "Upgrade: h2c",
    ": x",
    "x",
    " folded: x",
    "A: \u0000"
  };
  private static final String[] STATUS = {
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
    "HTTP/1.1 101 X",
    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK",
    "HTTP/1.1 200",
    "HTTP/1.0 200 OK",
    "HTTP/2 200",
    "HTTP/1.1 204 X",
    "HTTP/1.1 206 X",
    "HTTP/1.1 301 X",
    "HTTP/1.1 304 X",
    "HTTP/1.1 308 X",
    "HTTP/1.1 401 X",
    "HTTP/1.1 403 X",
    "HTTP/1.1 407 X",
    "HTTP/1.1 416 X",
    "HTTP/1.1 429 X",
    "HTTP/1.1 451 X",
    "HTTP/1.1 503 X",
    "HTTP/1.1 999 X",
    "HTTP/1.1 -1 X",
    "HTTP/1.1 2000 X",
    "HTTP/1.1 99999999999 X",
    "ICY 200 OK",
    "<html>",
    ""
  };

  private final SplittableRandom random;
  private final List<byte[]> seeds;

  Mutator(SplittableRandom random, List<byte[]> seeds) {
    this.random = random;
    this.seeds = seeds;
  }

  /** Bytes of a kind that is no text, or text as text. */
  byte[] bytes() {
    var result = pick();
    for (int n = 1 + random.nextInt(4); n > 0; n--) {
      result = byteChange(result);
    }
    return result;
  }

  /** JSON, changed as a tree, and now and then as bytes. */
  byte[] json() {
    var seed = pick();
    if (random.nextInt(5) == 0) {
      return bytes();
    }
    try {
      return tree(seed);
    } catch (IOException e) {
      return bytes();
    }
  }

  /** JSON lines: one of them changed as a tree. */
  byte[] jsonl() {
    if (random.nextInt(4) == 0) {
      return bytes();
    }
    var lines =
        new ArrayList<>(new String(pick(), StandardCharsets.UTF_8).lines().limit(8).toList());
    int at = random.nextInt(lines.size());
    try {
      lines.set(
          at,
          new String(tree(lines.get(at).getBytes(StandardCharsets.UTF_8)), StandardCharsets.UTF_8));
    } catch (IOException e) {
      return bytes();
    }
    return String.join("\n", lines).getBytes(StandardCharsets.UTF_8);
  }

  /** A safetensors file whose header is changed as a tree; the length before it fits, mostly. */
  byte[] safetensors() {
    var seed = pick();
    if (random.nextInt(4) == 0) {
      return bytes();
    }
    try {
      int length = (int) ByteBuffer.wrap(seed).order(ByteOrder.LITTLE_ENDIAN).getLong(0);
      var header = tree(Arrays.copyOfRange(seed, 8, 8 + length));
      if (random.nextInt(8) == 0) {
        header = byteChange(header);
      }
      int data = seed.length - 8 - length;
      var result = ByteBuffer.allocate(8 + header.length + data).order(ByteOrder.LITTLE_ENDIAN);
      result.putLong(random.nextInt(20) == 0 ? random.nextLong() : header.length);
      result.put(header).put(seed, 8 + length, data);
      return result.array();
    } catch (RuntimeException | IOException e) {
      return bytes();
    }
  }

  /** Replies of servers ({@link HttpScript}): a header, a status or a body changed, or bytes. */
  byte[] http() {
    var script = new String(pick(), StandardCharsets.ISO_8859_1);
    for (int n = 1 + random.nextInt(3); n > 0; n--) {
      script = httpChange(script);
    }
    return script.getBytes(StandardCharsets.ISO_8859_1);
  }

  private String httpChange(String script) {
    var parts = new ArrayList<>(List.of(script.split("(?<=\r\n)(?=@@ )")));
    int at = random.nextInt(parts.size());
    var part = parts.get(at);
    int line = part.indexOf("\r\n") + 2;
    int body = part.indexOf("\r\n\r\n", line) + 4;
    if (line < 2 || body < 4 || random.nextInt(5) == 0) {
      var bytes = byteChange(script.getBytes(StandardCharsets.ISO_8859_1));
      return new String(bytes, StandardCharsets.ISO_8859_1);
    }
    var headers = new ArrayList<>(List.of(part.substring(line, body - 4).split("\r\n")));
    var content = part.substring(body);
    int header = random.nextInt(headers.size());
    switch (random.nextInt(6)) {
      case 0 -> headers.set(0, STATUS[random.nextInt(STATUS.length)]);
      case 1 -> headers.add(header, HEADERS[random.nextInt(HEADERS.length)]);
      case 2 -> headers.set(header, HEADERS[random.nextInt(HEADERS.length)]);
      case 3 -> headers.remove(header);
      case 4 ->
          headers.set(
              header,
              new String(
                  byteChange(headers.get(header).getBytes(StandardCharsets.ISO_8859_1)),
                  StandardCharsets.ISO_8859_1));
      default -> content = bodyChange(content);
    }
    parts.set(at, part.substring(0, line) + String.join("\r\n", headers) + "\r\n\r\n" + content);
    return String.join("", parts);
  }

  private String bodyChange(String body) {
    var end = body.endsWith("\r\n") ? "\r\n" : "";
    var bytes = body.substring(0, body.length() - end.length()).getBytes(StandardCharsets.UTF_8);
    try {
      bytes = body.startsWith("[") || body.startsWith("{\"") ? tree(bytes) : byteChange(bytes);
    } catch (IOException e) {
      bytes = byteChange(bytes);
    }
    return new String(bytes, StandardCharsets.ISO_8859_1) + end;
  }

  private byte[] pick() {
    return seeds.get(random.nextInt(seeds.size()));
  }

  private byte[] tree(byte[] json) throws IOException {
    var root = Jsonl.JSON.readTree(json);
    var text = "";
    for (int n = 1 + random.nextInt(3); n > 0; n--) {
      root = changed(root);
    }
    text = root.toString();
    // numbers beyond what a tree holds are put in as text
    if (random.nextInt(3) == 0) {
      text = text.replaceFirst("\"VALUE\"", VALUES[random.nextInt(VALUES.length)]);
    }
    return text.replace("\"VALUE\"", VALUES[random.nextInt(VALUES.length)])
        .getBytes(StandardCharsets.UTF_8);
  }

  private JsonNode changed(JsonNode root) {
    var at = root;
    JsonNode parent = null;
    Object key = null;
    for (int depth = random.nextInt(8);
        depth >= 0 && at.isContainerNode() && !at.isEmpty();
        depth--) {
      parent = at;
      if (at.isObject()) {
        var names = new ArrayList<String>();
        at.fieldNames().forEachRemaining(names::add);
        key = names.get(random.nextInt(names.size()));
        at = at.get((String) key);
      } else {
        key = random.nextInt(at.size());
        at = at.get((Integer) key);
      }
    }
    if (parent == null) {
      return root;
    }
    var value = Jsonl.JSON.getNodeFactory().textNode("VALUE");
    switch (random.nextInt(6)) {
      case 0 -> remove(parent, key);
      case 1 -> put(parent, key, nested(random.nextInt(200)));
      case 2 -> put(parent, key, at.isTextual() ? text(at.textValue()) : value);
      case 3 -> {
        if (parent instanceof ObjectNode object) {
          object.set("x" + random.nextInt(3), random.nextBoolean() ? at.deepCopy() : value);
        } else if (parent instanceof ArrayNode array && array.size() < 1000) {
          array.add(at.deepCopy());
        }
      }
      default -> put(parent, key, value);
    }
    return root;
  }

  private JsonNode text(String text) {
    var bytes = byteChange(text.getBytes(StandardCharsets.UTF_8));
    return Jsonl.JSON.getNodeFactory().textNode(new String(bytes, StandardCharsets.UTF_8));
  }

  private static JsonNode nested(int depth) {
    var result = Jsonl.JSON.createArrayNode();
    for (int i = 0; i < depth; i++) {
      result = Jsonl.JSON.createArrayNode().add(result);
    }
    return result;
  }

  private static void remove(JsonNode parent, Object key) {
    if (parent instanceof ObjectNode object) {
      object.remove((String) key);
    } else if (parent instanceof ArrayNode array) {
      array.remove((Integer) key);
    }
  }

  private static void put(JsonNode parent, Object key, JsonNode value) {
    if (parent instanceof ObjectNode object) {
      object.set((String) key, value);
    } else if (parent instanceof ArrayNode array) {
      array.set((Integer) key, value);
    }
  }

  private byte[] byteChange(byte[] bytes) {
    if (bytes.length == 0) {
      return new byte[] {(byte) random.nextInt(256)};
    }
    int at = random.nextInt(bytes.length);
    int length = 1 + random.nextInt(Math.min(64, bytes.length - at));
    return switch (random.nextInt(9)) {
      case 0 -> {
        var result = bytes.clone();
        result[at] ^= (byte) (1 << random.nextInt(8));
        yield result;
      }
      case 1 -> {
        var result = bytes.clone();
        result[at] = (byte) random.nextInt(256);
        yield result;
      }
      case 2 -> Arrays.copyOf(bytes, at);
      case 3 -> joined(bytes, 0, at, new byte[0], at + length);
      case 4 -> joined(bytes, 0, at, Arrays.copyOfRange(bytes, at, at + length), at);
      case 5 -> {
        var other = pick();
        int from = random.nextInt(other.length);
        int to = Math.min(other.length, from + 1 + random.nextInt(256));
        yield joined(bytes, 0, at, Arrays.copyOfRange(other, from, to), at + length);
      }
      case 6 -> joined(bytes, 0, at, word(VALUES), at + random.nextInt(length));
      case 7 -> joined(bytes, 0, at, word(WORDS), at + random.nextInt(length));
      default -> {
        var result = bytes.clone();
        for (int i = at; i < at + Math.min(length, 8); i++) {
          result[i] = (byte) (random.nextBoolean() ? 0xff : 0);
        }
        yield result;
      }
    };
  }

  private byte[] word(String[] words) {
    return words[random.nextInt(words.length)].getBytes(StandardCharsets.UTF_8);
  }

  private static byte[] joined(byte[] bytes, int from, int to, byte[] middle, int rest) {
    var out = new ByteArrayOutputStream(bytes.length + middle.length);
    out.write(bytes, from, to - from);
    out.writeBytes(middle);
    out.write(bytes, rest, bytes.length - rest);
    return out.toByteArray();
  }
}

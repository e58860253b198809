package org.meteora;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** What the documents name exists: files that they link to, classes and members in code. */
class DocumentsTest {
  private static final Path ROOT =
      Path.of(System.getProperty("meteora.root", "..")).toAbsolutePath().normalize();
  private static final Pattern LINK = Pattern.compile("\\[([^\\]]*)\\]\\(([^)\\s#]+)[^)]*\\)");
  private static final Pattern CODE = Pattern.compile("`([^`\\n]+)`");
  private static final Pattern NAME = Pattern.compile("[A-Za-z_]\\w*(?:\\.[A-Za-z_]\\w*)*");
  private static final Pattern WORD = Pattern.compile("\\w+");

  @Test
  void filesThatDocumentsLinkToExist() throws IOException {
    var missing = new ArrayList<String>();
    int seen = 0;
    for (var document : documents()) {
      var links = LINK.matcher(Files.readString(document));
      while (links.find()) {
        if (links.group(2).contains(":")) {
          continue;
        }
        seen++;
        var target = document.resolveSibling(links.group(2)).normalize();
        if (!Files.exists(target)) {
          missing.add(ROOT.relativize(document) + ": " + links.group(2));
        } else if (target.toString().matches(".*\\.(java|cuh)")) {
          var name = links.group(1).replaceAll("`|\\.cuh(?=`$)", "");
          var member = name.substring(name.lastIndexOf('.') + 1);
          if (!target.getFileName().toString().startsWith(member)
              && !words(target).contains(member)) {
            missing.add(ROOT.relativize(document) + ": no " + member + " in " + links.group(2));
          }
        }
      }
    }
    assertThat(seen).isGreaterThan(60);
    assertThat(missing).isEmpty();
  }

  /** Of the two documents that are about the code. */
  @Test
  void whatTheyWriteInCodeIsInTheSources() throws IOException {
    var words = new HashSet<String>();
    var ofFile = new HashMap<String, Set<String>>();
    var paths = new ArrayList<String>();
    for (var source : sources()) {
      var found = words(source);
      words.addAll(found);
      ofFile.merge(source.getFileName().toString(), found, DocumentsTest::union);
      paths.add(ROOT.relativize(source).toString());
    }
    var unknown = new ArrayList<String>();
    for (var document : List.of("CONTRIBUTING.md", "docs/architecture.md")) {
      var codes = CODE.matcher(Files.readString(ROOT.resolve(document)));
      while (codes.find()) {
        var code = codes.group(1);
        if (code.matches("[\\w.]+(/[\\w.]+)+")
            ? !Files.exists(ROOT.resolve(code))
                && paths.stream().noneMatch(path -> path.contains(code))
            : NAME.matcher(code).matches() && !isKnown(code, words, ofFile, paths)) {
          unknown.add(document + ": " + code);
        }
      }
    }
    assertThat(unknown).isEmpty();
  }

  private static boolean isKnown(
      String name, Set<String> words, Map<String, Set<String>> ofFile, List<String> paths) {
    var parts = name.split("\\.");
    var file = ofFile.get(parts[0] + ".java");
    return (file == null ? words : file).containsAll(List.of(parts))
        || paths.stream().anyMatch(path -> path.endsWith(name) || path.endsWith("/" + name));
  }

  private static Set<String> union(Set<String> some, Set<String> others) {
    return Stream.concat(some.stream(), others.stream()).collect(Collectors.toSet());
  }

  private static Set<String> words(Path file) throws IOException {
    return WORD.matcher(Files.readString(file))
        .results()
        .map(found -> found.group())
        .collect(Collectors.toSet());
  }

  private static List<Path> documents() throws IOException {
    try (var top = Files.list(ROOT);
        var docs = Files.list(ROOT.resolve("docs"))) {
      return Stream.concat(top, docs).filter(path -> path.toString().endsWith(".md")).toList();
    }
  }

  private static List<Path> sources() throws IOException {
    try (var files = Files.walk(ROOT)) {
      return files
          .filter(path -> path.toString().contains("/src/"))
          .filter(path -> path.toString().matches(".*\\.(java|cuh|cu|cpp)"))
          .filter(path -> !path.toString().contains("/target/"))
          .toList();
    }
  }
}

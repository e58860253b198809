package org.meteora.train.listener;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Event files, taken apart by the definition of records and of protobuf's fields. */
class TensorBoardFileTest {
  @TempDir Path folder;

  /** A field of a message: its number, and a number or bytes. */
  private record Field(int number, long value, byte[] bytes) {}

  private static List<Field> fields(byte[] message) {
    var in = ByteBuffer.wrap(message).order(ByteOrder.LITTLE_ENDIAN);
    var result = new ArrayList<Field>();
    while (in.hasRemaining()) {
      long key = varint(in);
      int number = (int) (key >>> 3);
      result.add(
          switch ((int) (key & 7)) {
            case 0 -> new Field(number, varint(in), null);
            case 1 -> new Field(number, in.getLong(), null);
            case 5 -> new Field(number, in.getInt(), null);
            case 2 -> {
              var bytes = new byte[(int) varint(in)];
              in.get(bytes);
              yield new Field(number, 0, bytes);
            }
            default -> throw new IllegalStateException("type " + (key & 7));
          });
    }
    return result;
  }

  private static long varint(ByteBuffer in) {
    long result = 0;
    for (int shift = 0; ; shift += 7) {
      int next = in.get();
      result |= (long) (next & 0x7f) << shift;
      if (next >= 0) {
        return result;
      }
    }
  }

  private static Field one(List<Field> fields, int number) {
    return fields.stream().filter(field -> field.number() == number).findFirst().orElseThrow();
  }

  private static String text(Field field) {
    return new String(field.bytes(), StandardCharsets.UTF_8);
  }

  /** CRC-32C by its polynomial, bit by bit, and TensorFlow's mask. */
  private static int checksum(byte[] data) {
    int crc = -1;
    for (byte each : data) {
      crc ^= each & 0xff;
      for (int bit = 0; bit < 8; bit++) {
        crc = crc >>> 1 ^ ((crc & 1) == 1 ? 0x82f63b78 : 0);
      }
    }
    return Integer.rotateRight(~crc, 15) + 0xa282ead8;
  }

  private static List<List<Field>> events(Path file) throws IOException {
    var in = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
    var result = new ArrayList<List<Field>>();
    while (in.hasRemaining()) {
      var length = new byte[8];
      in.get(length);
      assertThat(in.getInt()).isEqualTo(checksum(length));
      var data = new byte[(int) ByteBuffer.wrap(length).order(ByteOrder.LITTLE_ENDIAN).getLong()];
      in.get(data);
      assertThat(in.getInt()).isEqualTo(checksum(data));
      result.add(fields(data));
    }
    return result;
  }

  /** Scalars of an event by their tags. */
  private static Map<String, Float> scalars(List<Field> event) {
    var result = new java.util.LinkedHashMap<String, Float>();
    for (var value : fields(one(event, 5).bytes())) {
      var parts = fields(value.bytes());
      result.put(text(one(parts, 1)), Float.intBitsToFloat((int) one(parts, 2).value()));
    }
    return result;
  }

  private static StepReport.Losses losses(double languageModel) {
    return new StepReport.Losses(
        languageModel,
        0.5,
        languageModel + 5,
        0.75,
        Map.of("gsm8k", 0.5, "strategyqa", 1.0),
        0.875,
        Map.of("gsm8k", 0.625),
        1234,
        TextLosses.of(Map.of("gsm8k", 1.5), Map.of("gsm8k", 2.5)));
  }

  @Test
  void holdsWhatARunSays() throws IOException {
    var board = new TensorBoardFile(folder, Map.of("learning_rate", 0.02));
    board.onStart(0, 300);
    board.onStep(new StepReport(200, 0.01, 2.5, losses(1.25), 0.5, 2500, 0.1, 3L << 30));
    board.onEvaluation(
        200, new Evaluation(losses(Double.NaN), Optional.of(losses(1).texts()), Optional.empty()));
    Path file;
    try (var all = Files.list(folder)) {
      file = all.findFirst().orElseThrow();
    }
    assertThat(file.getFileName().toString()).startsWith("events.out.tfevents.");
    var events = events(file);
    assertThat(events).hasSize(5);
    assertThat(text(one(events.get(0), 3))).isEqualTo("brain.Event:2");
    assertThat(Double.longBitsToDouble(one(events.get(0), 1).value()))
        .isCloseTo(System.currentTimeMillis() / 1e3, within(60.0));

    var settings = fields(fields(one(events.get(2), 5).bytes()).getFirst().bytes());
    assertThat(text(one(settings, 1))).isEqualTo("settings/text_summary");
    assertThat(text(one(fields(one(settings, 8).bytes()), 8))).contains("| learning_rate | 0.02 |");

    assertThat(one(events.get(3), 2).value()).isEqualTo(200);
    assertThat(scalars(events.get(3)))
        .containsEntry("train/lm_loss", 1.25f)
        .containsEntry("train_gate_accuracy/strategyqa", 1f)
        .containsEntry("train/learning_rate", 0.01f)
        .containsEntry("speed/memory_bytes", (float) (3L << 30));
    assertThat(scalars(events.get(4)))
        .containsEntry("oracle/answer_loss", 1.5f)
        .containsEntry("eval_prompt_loss/gsm8k", 2.5f)
        .doesNotContainKey("eval/lm_loss"); // not a number
  }

  @Test
  void aResumedRunVoidsWhatIsMadeAgain() throws IOException {
    var board = new TensorBoardFile(folder, Map.of());
    board.onStart(40, 100);
    Path file;
    try (var all = Files.list(folder)) {
      file = all.findFirst().orElseThrow();
    }
    var start = events(file).get(1);
    assertThat(one(start, 2).value()).isEqualTo(41);
    assertThat(one(fields(one(start, 7).bytes()), 1).value()).isEqualTo(1);
  }

  /** One that was killed before its first checkpoint has left events. */
  @Test
  void aRunThatBeginsVoidsWhatAnEarlierOneMade() throws IOException {
    new TensorBoardFile(folder, Map.of()).onStart(0, 100);
    var start = events(onlyFile()).get(1);
    assertThat(one(start, 2).value()).isZero();
    assertThat(one(fields(one(start, 7).bytes()), 1).value()).isEqualTo(1);
  }

  /** As a disk leaves it that is full. */
  @Test
  void halfARecordIsWrittenOver() throws IOException {
    var board = new TensorBoardFile(folder, Map.of());
    board.onStart(0, 300);
    Files.write(onlyFile(), new byte[1000], java.nio.file.StandardOpenOption.APPEND);
    board.onStep(new StepReport(1, 0.01, 2.5, losses(1.25), 0.5, 2500, 0.1, 3L << 30));
    var events = events(onlyFile());
    assertThat(events).hasSize(4);
    assertThat(scalars(events.getLast())).containsEntry("train/lm_loss", 1.25f);
  }

  private Path onlyFile() throws IOException {
    try (var all = Files.list(folder)) {
      return all.findFirst().orElseThrow();
    }
  }
}

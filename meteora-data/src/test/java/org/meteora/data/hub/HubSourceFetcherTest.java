package org.meteora.data.hub;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.channels.SocketChannel;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.data.tasks.Tasks;

class HubSourceFetcherTest {
  @TempDir Path folder;

  @Test
  void aTasksFilesLandWhereTheyAreLookedForAndTheListingIsReadOnce() throws Exception {
    try (var server = new FakeHub()) {
      server.add("README.md", new byte[5], false);
      server.add("data/winowhy/train-00000-of-00001.parquet", new byte[7], true);
      server.add("cs_algorithms/validation-00000-of-00001.parquet", new byte[9], true);
      server.add("not_winowhy/train-00000-of-00001.parquet", new byte[11], true);
      // patient: on a busy machine a listing that is late would be asked for twice
      var settings = Hubs.settings(server, folder, HubSettings.Layout.DEFAULT, Timing.DEFAULT);
      var hub = new HubClient(settings);
      var fetcher = new HubSourceFetcher(() -> hub);
      fetcher.fetch(Tasks.get("winowhy"), folder.resolve("w"));
      fetcher.fetch(Tasks.get("cs_algorithms"), folder.resolve("c"));
      assertThat(folder.resolve("w/train-00000-of-00001.parquet")).hasSize(7);
      assertThat(folder.resolve("c/validation-00000-of-00001.parquet")).hasSize(9);
      assertThatThrownBy(() -> fetcher.fetch(Tasks.get("unit_conversion"), folder.resolve("u")))
          .hasMessageContaining("no file of the data set tasksource/bigbench matches");
      assertThat(server.requests.stream().filter(r -> r.path().contains("/tree/"))).hasSize(1);
      assertThat(server.requests).allMatch(r -> r.path().contains("datasets") || r.second());
    }
  }

  @Test
  void whereNobodyAnswersTheOtherTasksAreNotAskedFor() throws Exception {
    // bound and not listening: connections are refused, and nobody else is given the port
    try (var nobody =
        SocketChannel.open().bind(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0))) {
      var port = ((InetSocketAddress) nobody.getLocalAddress()).getPort();
      var settings =
          Hubs.settings(
              URI.create("http://127.0.0.1:" + port),
              folder,
              HubSettings.Layout.DEFAULT,
              Hubs.FAST);
      var fetcher = new HubSourceFetcher(() -> new HubClient(settings));
      assertThatThrownBy(() -> fetcher.fetch(Tasks.get("winowhy"), folder.resolve("w")))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("given up after 8 attempts");
      assertThatThrownBy(() -> fetcher.fetch(Tasks.get("alpaca"), folder.resolve("a")))
          .isInstanceOf(UserException.class)
          .hasMessage("not fetched, since the Hub did not answer before");
    }
  }
}

package org.meteora.eval.sweep;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.eval.Answer;
import org.meteora.eval.EvalTask;
import org.meteora.eval.Scores;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;

class SweepTest {
  @Test
  void makesAllCombinations() {
    var points = Sweep.of(List.of("routing-top-k=1,3", "routing_temperature=1,4.5,15")).points();
    assertThat(points).hasSize(6);
    assertThat(points.get(1).name()).isEqualTo("routing_top_k=1,routing_temperature=4.5");
    assertThat(points.get(1).routing(new RoutingSettings(2, 1), name -> Router.uniform(3)))
        .isEqualTo(new RoutingSettings(1, 4.5));
    assertThat(
            Sweep.of(List.of("routing_top_k=3"))
                .points()
                .getFirst()
                .routing(new RoutingSettings(2, 7), name -> Router.uniform(3)))
        .isEqualTo(new RoutingSettings(3, 7));
    var routers = Sweep.of(List.of("router=gate,uniform")).points();
    var single = new RoutingSettings(2, 7, Router.fixed(1));
    assertThat(routers.get(1).name()).isEqualTo("router=uniform");
    assertThat(
            routers
                .get(1)
                .routing(single, name -> name.equals("uniform") ? Router.uniform(3) : null))
        .isEqualTo(new RoutingSettings(2, 7, Router.uniform(3)));
    assertThat(points.get(1).routing(single, name -> null).router()).isEqualTo(Router.fixed(1));
  }

  @Test
  void whatCannotBeVariedIsRefused() {
    for (var wrong :
        List.of(
            "routing_top_k",
            "seed=1,2",
            "routing_top_k=0",
            "routing_top_k=1.5",
            "routing_top_k=1,",
            "routing_top_k=1,1",
            "routing_temperature=x",
            "router=gate,arow")) {
      assertThatThrownBy(() -> Sweep.of(List.of(wrong))).isInstanceOf(UserException.class);
    }
    assertThatThrownBy(() -> Sweep.of(List.of("routing_topk=1")))
        .hasMessageContaining("did you mean");
    assertThatThrownBy(() -> Sweep.of(List.of("routing_top_k=1", "routing-top-k=2")))
        .hasMessageContaining("twice");
  }

  @Test
  void showsATableAndHeatMaps() {
    var sweep = Sweep.of(List.of("routing_top_k=1,2", "routing_temperature=1,4"));
    var report = new SweepReport("winowhy", sweep);
    var task = EvalTask.of("winowhy");
    int right = 0;
    for (var point : sweep.points()) {
      right++;
      var answers = new java.util.ArrayList<Answer>();
      for (int i = 0; i < 8; i++) {
        answers.add(
            new Answer("winowhy", i, "p", "t", "", i < right * 2 ? "t" : "x", 1, 1, false, false));
      }
      report.add(point, task, answers, Scores.of(task, answers));
    }
    assertThat(report.table())
        .contains("routing_top_k  routing_temperature  Accuracy", "0.250 (", "1.000 (1.000 to");
    assertThat(report.html())
        .contains("<svg", ">0.750<", "routing_top_k 2")
        .doesNotContain("http://");
  }
}

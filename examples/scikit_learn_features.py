"""Cluster texts, and classify them with a linear probe, with scikit-learn.

pip install e5onnx scikit-learn
python scikit_learn_features.py MODEL

For features, E5's authors put "query: " before every text and, for classification, leave out the normalisation.
"""

import sys

from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from e5onnx import Encoder

TOPICS = {
    "food": [
        "Simmer the tomatoes with garlic and basil.",
        "Knead the dough and let it rise for an hour.",
        "Whisk the eggs with sugar until they are pale.",
        "Roast the potatoes with rosemary and salt.",
        "Serve the soup with a slice of fresh bread.",
        "Grill the fish and squeeze a lemon over it.",
        "Melt the chocolate and stir in the cream.",
        "Chop the onions and fry them in butter.",
    ],
    "sport": [
        "The striker scored twice before half-time.",
        "She won the final set after a long tie-break.",
        "The marathon runner broke the course record.",
        "Their goalkeeper saved a penalty in extra time.",
        "He swam the hundred metres in under fifty seconds.",
        "The coach made three substitutions in the second half.",
        "Our team lost the basketball game by two points.",
        "The cyclist attacked on the last climb of the stage.",
    ],
    "space": [
        "The telescope photographed a distant galaxy.",
        "Two astronauts repaired the orbiting station.",
        "The probe entered an orbit around Saturn.",
        "A comet will be visible from the northern hemisphere.",
        "The rover drilled into a rock on Mars.",
        "Gravity waves come from colliding black holes.",
        "The rocket carried a satellite into orbit.",
        "Astronomers found a planet around a dwarf star.",
    ],
}

encoder = Encoder(sys.argv[1])
texts = [text for group in TOPICS.values() for text in group]
labels = [topic for topic, group in TOPICS.items() for _ in group]
features = encoder.encode_query(texts, output_value="pooled_embedding")  # before the normalisation

clusters = KMeans(n_clusters=len(TOPICS), n_init=10, random_state=0).fit_predict(features)
agreement = adjusted_rand_score(labels, clusters)
print(f"clusters agree with the topics: {agreement:.2f} (1 is perfect, 0 is chance)")

probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
accuracy = cross_val_score(probe, features, labels, cv=4).mean()
print(f"accuracy of the linear probe on texts it has not seen: {accuracy:.2f}")
